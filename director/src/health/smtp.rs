//! `smtp`: the server greets, accepts `EHLO` and says goodbye (RFC 5321, section 3.1 and 4.1.1).

use std::borrow::Cow;
use std::net::SocketAddr;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;

use super::probe::ProbeError;
use super::{CheckError, tcp};

/// The most one reply may take, continuation lines included: a server that never ends one is not up.
const MAX_REPLY: u64 = 16 * 1024;

/// Settings of the kind `smtp`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Smtp {
    /// `helo`: the name given with `EHLO`.
    pub helo: String,
}

impl Default for Smtp {
    /// `localhost`.
    fn default() -> Self {
        Self { helo: "localhost".to_owned() }
    }
}

impl Smtp {
    pub(super) fn validate(&self) -> Result<(), CheckError> {
        if self.helo.is_empty() || !self.helo.bytes().all(|byte| byte.is_ascii_graphic()) {
            let problem = "is no name to say EHLO with: write a host name";
            return Err(CheckError::Value { key: "helo", value: self.helo.clone(), problem });
        }
        Ok(())
    }

    pub(super) async fn probe(&self, to: SocketAddr) -> Result<Cow<'static, str>, ProbeError> {
        let mut stream = BufStream::new(tcp::connect(to).await?);
        expect(&mut stream, "greeting", 220).await?;
        say(&mut stream, &format!("EHLO {}\r\n", self.helo)).await?;
        expect(&mut stream, "EHLO", 250).await?;
        say(&mut stream, "QUIT\r\n").await?;
        expect(&mut stream, "QUIT", 221).await?;
        Ok("greeted".into())
    }
}

async fn say(stream: &mut BufStream<TcpStream>, line: &str) -> Result<(), ProbeError> {
    stream.write_all(line.as_bytes()).await?;
    Ok(stream.flush().await?)
}

/// Reads one reply, which may have several lines, and compares its code.
async fn expect(stream: &mut BufStream<TcpStream>, step: &str, code: u16) -> Result<(), ProbeError> {
    let mut limited = stream.take(MAX_REPLY);
    loop {
        let mut line = Vec::new();
        limited.read_until(b'\n', &mut line).await?;
        if line.last() != Some(&b'\n') {
            let what = if limited.limit() == 0 { "is too long" } else { "ends with the connection" };
            return Err(ProbeError::answer(format!("reply to {step} {what}")));
        }
        let said = line.get(..3).and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u16>().ok());
        match (said, line.get(3)) {
            (Some(said), _) if said != code => {
                return Err(ProbeError::answer(format!("{step} answered with {said}")));
            }
            (Some(_), Some(b'-')) => {}
            (Some(_), Some(b' ' | b'\r' | b'\n')) => return Ok(()),
            _ => return Err(ProbeError::answer(format!("reply to {step} is not SMTP"))),
        }
    }
}
