//! `dns`: a name server answers a query over UDP without an error and with at least one record.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::atomic::{AtomicU16, Ordering};

use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, QTYPE, Question, RCODE, TYPE};

use super::CheckError;
use super::probe::ProbeError;
use super::udp;

/// The longest answer over UDP without extensions (RFC 1035, section 2.3.4).
const MAX_ANSWER: usize = 512;

/// Settings of the kind `dns`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Dns {
    /// `name`: what is asked for; `.` is the root.
    pub name: String,
    /// `record`: the type asked for.
    pub record: DnsRecord,
    /// `answer`: an address that must be among the answers; with `A` and `AAAA` only.
    pub answer: Option<IpAddr>,
}

/// Type of record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DnsRecord {
    /// IPv4 address.
    A,
    /// IPv6 address.
    Aaaa,
    /// Name server.
    Ns,
    /// Alias.
    Cname,
    /// Start of authority.
    Soa,
    /// Mail exchanger.
    Mx,
    /// Text.
    Txt,
}

impl Default for Dns {
    /// SOA of the root, as keepalived's.
    fn default() -> Self {
        Self { name: ".".to_owned(), record: DnsRecord::Soa, answer: None }
    }
}

impl FromStr for DnsRecord {
    type Err = CheckError;

    fn from_str(text: &str) -> Result<Self, CheckError> {
        Ok(match text.to_ascii_uppercase().as_str() {
            "A" => Self::A,
            "AAAA" => Self::Aaaa,
            "NS" => Self::Ns,
            "CNAME" => Self::Cname,
            "SOA" => Self::Soa,
            "MX" => Self::Mx,
            "TXT" => Self::Txt,
            _ => {
                let problem = "is not supported: write A, AAAA, NS, CNAME, SOA, MX or TXT";
                return Err(CheckError::Value { key: "record", value: text.to_owned(), problem });
            }
        })
    }
}

impl DnsRecord {
    fn wire(self) -> TYPE {
        match self {
            Self::A => TYPE::A,
            Self::Aaaa => TYPE::AAAA,
            Self::Ns => TYPE::NS,
            Self::Cname => TYPE::CNAME,
            Self::Soa => TYPE::SOA,
            Self::Mx => TYPE::MX,
            Self::Txt => TYPE::TXT,
        }
    }
}

impl Dns {
    pub(super) fn validate(&self) -> Result<(), CheckError> {
        if self.query(0).is_err() {
            let problem = "is no domain name: at most 63 bytes a label and 255 in all";
            return Err(CheckError::Value { key: "name", value: self.name.clone(), problem });
        }
        match (self.answer, self.record) {
            (None, _) | (Some(IpAddr::V4(_)), DnsRecord::A) | (Some(IpAddr::V6(_)), DnsRecord::Aaaa) => {
                Ok(())
            }
            (Some(_), _) => Err(CheckError::Conflict {
                key: "answer",
                problem: "must be an address of the record's family: IPv4 with A, IPv6 with AAAA",
            }),
        }
    }

    pub(super) async fn probe(&self, to: SocketAddr) -> Result<Cow<'static, str>, ProbeError> {
        // Each probe has a socket, and so a port, of its own; the number only tells late answers apart in traces.
        static NEXT: AtomicU16 = AtomicU16::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let query = self.query(id).map_err(|error| ProbeError::from_chain(&error))?;
        let socket = udp::connect(to).await?;
        socket.send(&query).await?;
        let mut buffer = [0; MAX_ANSWER];
        loop {
            let length = socket.recv(&mut buffer).await?;
            if let Some(result) = self.judge(id, buffer.get(..length).unwrap_or_default()) {
                return result;
            }
        }
    }

    fn query(&self, id: u16) -> Result<Vec<u8>, simple_dns::SimpleDnsError> {
        let mut packet = Packet::new_query(id);
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
        let name = Name::new(self.name.strip_suffix('.').unwrap_or(&self.name))?;
        packet.questions.push(Question::new(name, QTYPE::TYPE(self.record.wire()), CLASS::IN.into(), false));
        packet.build_bytes_vec()
    }

    /// `None` where the datagram does not answer query `id`.
    fn judge(&self, id: u16, datagram: &[u8]) -> Option<Result<Cow<'static, str>, ProbeError>> {
        let packet = match Packet::parse(datagram) {
            Ok(packet) => packet,
            Err(error) => return Some(Err(ProbeError::answer(format!("malformed answer: {error}")))),
        };
        if packet.id() != id || !packet.has_flags(PacketFlag::RESPONSE) {
            return None;
        }
        if packet.rcode() != RCODE::NoError {
            return Some(Err(ProbeError::answer(format!("response code {:?}", packet.rcode()))));
        }
        let count = packet.answers.len();
        if count == 0 {
            return Some(Err(ProbeError::answer("no record in the answer")));
        }
        let expected = |address: IpAddr| {
            packet.answers.iter().any(|record| match &record.rdata {
                RData::A(a) => IpAddr::V4(Ipv4Addr::from(a.address)) == address,
                RData::AAAA(aaaa) => IpAddr::V6(Ipv6Addr::from(aaaa.address)) == address,
                _ => false,
            })
        };
        match self.answer {
            Some(address) if !expected(address) => {
                Some(Err(ProbeError::answer(format!("{address} is not in the answer"))))
            }
            _ => Some(Ok(format!("{count} records").into())),
        }
    }
}
