//! Each kind of check against a server that behaves and against ones that do not.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use simple_dns::rdata::{A, RData};
use simple_dns::{CLASS, Packet, PacketFlag, RCODE, ResourceRecord};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::{TcpListener, UdpSocket};
use tonic::transport::{Identity, Server, ServerTlsConfig};

use super::super::{
    Authorities, Body, Check, Dns, DnsRecord, Exec, Grpc, Http, Method, Reply, Smtp, StatusSet, Tcp, Tls,
    Udp, Verify,
};
use super::servers::{self, Silent};
use super::{DEADLINE, anywhere, probe};

/// An address of loopback at which nothing listens: no other test takes the port meanwhile, for all use 127.0.0.1.
fn closed() -> SocketAddr {
    ([127, 0, 0, 2], 9).into()
}

fn http(change: impl FnOnce(&mut Http)) -> Check {
    let mut http = Http::default();
    change(&mut http);
    Check::Http(http)
}

#[tokio::test]
async fn tcp_tells_open_from_closed() {
    let to = Silent::default().start().await;
    assert_eq!(probe(&Check::Tcp(Tcp::default()), to).await, Ok("connected".into()));
    assert_eq!(probe(&Check::Tcp(Tcp::default()), closed()).await, Err("connection refused".into()));
}

#[tokio::test]
async fn tcp_ends_by_reset_only_where_asked_for() {
    for reset in [false, true] {
        let listener = TcpListener::bind(anywhere()).await.unwrap();
        let check = Check::Tcp(Tcp { reset });
        probe(&check, listener.local_addr().unwrap()).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        let end = stream.read(&mut [0; 1]).await.map_err(|error| error.kind());
        assert_eq!(end, if reset { Err(std::io::ErrorKind::ConnectionReset) } else { Ok(0) });
    }
}

#[tokio::test]
async fn a_probe_ends_with_its_timeout() {
    let to = Silent::default().start().await;
    let begun = Instant::now();
    let timeout = Duration::from_millis(150);
    let error = http(|_| ()).probe(to, timeout).await.unwrap_err();
    assert_eq!(error.to_string(), "timed out after 150 ms");
    assert!(begun.elapsed() >= timeout);
}

#[tokio::test]
async fn http_judges_the_status() {
    let to = servers::http().await;
    assert_eq!(probe(&http(|_| ()), to).await, Ok("status 200".into()));
    let not_found = |http: &mut Http| http.path = "/status/404".into();
    assert_eq!(probe(&http(not_found), to).await, Err("status 404".into()));
    let accepted = |http: &mut Http| {
        http.path = "/status/404".into();
        http.status = "200-299, 404".parse().unwrap();
    };
    assert_eq!(probe(&http(accepted), to).await, Ok("status 404".into()));
    let moved = |http: &mut Http| http.path = "/status/301".into();
    assert_eq!(probe(&http(moved), to).await, Err("status 301".into()), "redirects are not followed");
    assert_eq!(probe(&http(|_| ()), closed()).await, Err("connection refused".into()));
}

#[tokio::test]
async fn http_judges_the_body() {
    let to = servers::http().await;
    let body = |path: &str, body: Body, max: usize| {
        let path = path.to_owned();
        http(|http| (http.path, http.body, http.max_body) = (path, Some(body), max))
    };
    let contains = |text: &str| Body::Contains(text.to_owned());
    let ok = Ok("status 200".to_owned());
    assert_eq!(probe(&body("/a?b=c", contains("GET /a?b=c"), 1000), to).await, ok);
    assert_eq!(probe(&body("/", Body::matches("^GET .$").unwrap(), 1000), to).await, ok);
    let missing = Err("no \"yes\" in 5 bytes of the body".to_owned());
    assert_eq!(probe(&body("/", contains("yes"), 1000), to).await, missing);
    let missing = Err("no match of ^POST in 5 bytes of the body".to_owned());
    assert_eq!(probe(&body("/", Body::matches("^POST").unwrap(), 1000), to).await, missing);
    assert_eq!(probe(&body("/long", contains("end"), 200_000), to).await, ok);
    let beyond = Err("no \"end\" in 100000 bytes of the body".to_owned());
    assert_eq!(probe(&body("/long", contains("end"), 100_000), to).await, beyond, "max_body holds");
}

#[tokio::test]
async fn http_asks_as_configured() {
    let to = servers::http().await;
    let host = |host: Option<&str>, expected: &str| {
        let (host, expected) = (host.map(str::to_owned), Body::matches(&format!("^{expected}$")).unwrap());
        http(|http| (http.path, http.host, http.body) = ("/host".into(), host, Some(expected)))
    };
    probe(&host(None, &to.to_string()), to).await.unwrap();
    probe(&host(Some("www.example.org"), "www.example.org"), to).await.unwrap();
    let head = |http: &mut Http| http.method = Method::Head;
    assert_eq!(probe(&http(head), to).await, Ok("status 200".into()));
}

#[tokio::test]
async fn http_is_not_satisfied_by_another_protocol() {
    let to = servers::serve(|mut stream| async move {
        let _ = stream.write_all(b"220 mail ESMTP\r\n").await;
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    })
    .await;
    let reason = probe(&http(|_| ()), to).await.unwrap_err();
    // By which words depends on whether the greeting comes before or after the request is sent.
    assert!(reason.contains("invalid HTTP") || reason.contains("unexpected message"), "{reason}");
    let to = servers::serve(|stream| async move { drop(stream) }).await;
    probe(&http(|_| ()), to).await.unwrap_err();
}

#[tokio::test]
async fn https_verifies_only_where_asked_for() {
    let (to, pem) = servers::https("www.example.org").await;
    let own = Verify::Against(Authorities::from_pem(pem.as_bytes()).unwrap());
    let (_, stranger) = servers::https("www.example.org").await;
    let foreign = Verify::Against(Authorities::from_pem(stranger.as_bytes()).unwrap());
    let check = |verify: &Verify, host: Option<&str>, name: Option<&str>| {
        let http = Http { host: host.map(str::to_owned), ..Http::default() };
        Check::Https(http, Tls::new(verify.clone(), name.map(str::to_owned)).unwrap())
    };
    let (right, wrong) = (Some("www.example.org"), Some("example.net"));
    let ok = Ok("status 200".to_owned());
    assert_eq!(probe(&check(&Verify::No, None, None), to).await, ok);
    assert_eq!(probe(&check(&Verify::No, wrong, None), to).await, ok);
    assert_eq!(probe(&check(&own, right, None), to).await, ok, "the host is the name");
    assert_eq!(probe(&check(&own, wrong, right), to).await, ok, "server_name goes before the host");
    for bad in [check(&own, wrong, None), check(&own, None, None), check(&foreign, right, None)] {
        let reason = probe(&bad, to).await.unwrap_err();
        assert!(reason.contains("certificate"), "{reason}");
    }
    let plain = servers::http().await;
    assert!(probe(&check(&Verify::No, None, None), plain).await.is_err(), "plain HTTP is no HTTPS");
}

/// Answers every query with `rcode` and, to a query for `www.example.org`, the address 192.0.2.1.
async fn name_server(rcode: RCODE) -> SocketAddr {
    let socket = UdpSocket::bind(anywhere()).await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let query = Packet::parse(&buffer[..length]).unwrap();
            let stale = Packet::new_reply(query.id().wrapping_add(1)).build_bytes_vec().unwrap();
            let mut reply = Packet::new_reply(query.id());
            reply.set_flags(PacketFlag::AUTHORITATIVE_ANSWER);
            *reply.rcode_mut() = rcode;
            let name = query.questions[0].qname.clone();
            if name.to_string() == "www.example.org" {
                let rdata = RData::A(A { address: Ipv4Addr::new(192, 0, 2, 1).into() });
                reply.answers.push(ResourceRecord::new(name, CLASS::IN, 60, rdata));
            }
            socket.send_to(&stale, from).await.unwrap();
            socket.send_to(&reply.build_bytes_vec().unwrap(), from).await.unwrap();
        }
    });
    address
}

#[tokio::test]
async fn dns_judges_the_answer() {
    let check = |name: &str, answer: Option<IpAddr>| {
        Check::Dns(Dns { name: name.to_owned(), record: DnsRecord::A, answer })
    };
    let address = |last| Some(IpAddr::from([192, 0, 2, last]));
    let to = name_server(RCODE::NoError).await;
    assert_eq!(probe(&check("www.example.org.", None), to).await, Ok("1 records".into()));
    assert_eq!(probe(&check("www.example.org", address(1)), to).await, Ok("1 records".into()));
    let missing = Err("192.0.2.2 is not in the answer".to_owned());
    assert_eq!(probe(&check("www.example.org", address(2)), to).await, missing);
    assert_eq!(probe(&check("example.net", None), to).await, Err("no record in the answer".into()));
    let failing = name_server(RCODE::ServerFailure).await;
    let reason = Err("response code ServerFailure".to_owned());
    assert_eq!(probe(&check("www.example.org", None), failing).await, reason);
    assert_eq!(probe(&Check::Dns(Dns::default()), closed()).await, Err("connection refused".into()));
}

#[tokio::test]
async fn udp_tells_answers_silence_and_refusal_apart() {
    let silent = UdpSocket::bind(anywhere()).await.unwrap();
    let echo = UdpSocket::bind(anywhere()).await.unwrap();
    let (quiet, to) = (silent.local_addr().unwrap(), echo.local_addr().unwrap());
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = echo.recv_from(&mut buffer).await {
            echo.send_to(&buffer[..length], from).await.unwrap();
        }
    });
    let check = |reply| Check::Udp(Udp { payload: b"hello".to_vec(), reply });
    let answered = Ok("answered 5 bytes".to_owned());
    assert_eq!(probe(&check(Reply::Any), to).await, answered);
    assert_eq!(probe(&check(Reply::Contains(b"ell".to_vec())), to).await, answered);
    let reason = Err("what is expected is not in the 5 bytes answered".to_owned());
    assert_eq!(probe(&check(Reply::Contains(b"elf".to_vec())), to).await, reason);
    for reply in [Reply::NotRequired, Reply::Any] {
        assert_eq!(probe(&check(reply), closed()).await, Err("connection refused".into()));
    }
    let short = Duration::from_millis(100);
    assert_eq!(check(Reply::NotRequired).probe(quiet, short).await.unwrap(), "not refused");
    assert!(check(Reply::Any).probe(quiet, short).await.is_err());
}

/// Greets, then answers each line with the next of `replies`.
async fn mail_server(greeting: &'static str, replies: &'static [&'static str]) -> SocketAddr {
    servers::serve(move |stream| async move {
        let mut stream = BufStream::new(stream);
        let mut line = String::new();
        for reply in [greeting].iter().chain(replies) {
            if stream.write_all(reply.as_bytes()).await.is_err() || stream.flush().await.is_err() {
                return;
            }
            if !matches!(stream.read_line(&mut line).await, Ok(1..)) {
                return;
            }
        }
        assert_eq!(line, "EHLO localhost\r\nQUIT\r\n");
    })
    .await
}

#[tokio::test]
async fn smtp_wants_every_step_accepted() {
    let check = Check::Smtp(Smtp::default());
    let good = mail_server("220-welcome\r\n220 mail\r\n", &["250-mail\r\n250 SIZE\r\n", "221 bye\r\n"]).await;
    assert_eq!(probe(&check, good).await, Ok("greeted".into()));
    let cases: [(_, &'static [&'static str], _); 5] = [
        ("554 no service\r\n", &[], "greeting answered with 554"),
        ("220 mail\r\n", &["502 what\r\n"], "EHLO answered with 502"),
        ("220 mail\r\n", &["250 mail\r\n", "500 stay\r\n"], "QUIT answered with 500"),
        ("HTTP/1.1 400 Bad\r\n", &[], "reply to greeting is not SMTP"),
        ("2200 mail\r\n", &[], "reply to greeting is not SMTP"),
    ];
    for (greeting, replies, reason) in cases {
        let to = mail_server(greeting, replies).await;
        assert_eq!(probe(&check, to).await, Err(reason.to_owned()));
    }
    let endless =
        servers::serve(
            |mut stream| async move { while stream.write_all(b"220-and then\r\n").await.is_ok() {} },
        )
        .await;
    assert_eq!(probe(&check, endless).await, Err("reply to greeting is too long".into()));
    let cut = servers::serve(|mut stream| async move { stream.write_all(b"220-").await.unwrap() }).await;
    assert_eq!(probe(&check, cut).await, Err("reply to greeting ends with the connection".into()));
}

/// In a network of its own, which ends with it: elsewhere something may answer for anybody.
#[test]
fn ping_tells_an_answer_from_silence_and_from_no_way() {
    let alone = std::thread::spawn(|| {
        if unshare(CloneFlags::CLONE_NEWNET).is_err() {
            eprintln!("skipped: a network namespace needs root");
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(ping_alone());
    });
    alone.join().unwrap();
}

async fn ping_alone() {
    let (v4, v6) = (IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST));
    let ping = async |to| probe(&Check::Ping, SocketAddr::new(to, 0)).await;
    assert_eq!(ping(v4).await, Err("network is unreachable".into()), "the loopback device is down");
    assert!(std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
    // By a raw socket first, since a new network admits nobody to the other kind, then by a ping socket.
    for admitted in ["1 0", "0 0"] {
        std::fs::write("/proc/sys/net/ipv4/ping_group_range", admitted).unwrap();
        for to in [v4, v6] {
            assert_eq!(ping(to).await, Ok("answered".into()), "{to}, groups {admitted}");
        }
    }
    std::fs::write("/proc/sys/net/ipv4/icmp_echo_ignore_all", "1").unwrap();
    let error = Check::Ping.probe(SocketAddr::new(v4, 0), Duration::from_millis(100)).await.unwrap_err();
    assert_eq!(error.to_string(), "timed out after 100 ms");
}

fn shell(script: &str) -> Check {
    Check::Exec(Exec { program: PathBuf::from("/bin/sh"), arguments: vec!["-c".into(), script.into()] })
}

#[tokio::test]
async fn exec_goes_by_the_exit_status() {
    let to = SocketAddr::from(([10, 0, 2, 11], 80));
    assert_eq!(probe(&shell("exit 0"), to).await, Ok("exit status 0".into()));
    assert_eq!(probe(&shell("exit 3"), to).await, Err("exit status 3".into()));
    let told = "test $DIRECTOR_REAL_ADDRESS:$DIRECTOR_REAL_PORT = 10.0.2.11:80";
    assert_eq!(probe(&shell(told), to).await, Ok("exit status 0".into()));
    let missing = Check::Exec(Exec { program: PathBuf::from("/no/such"), arguments: Vec::new() });
    let reason = "cannot run /no/such: no such file or directory";
    assert_eq!(probe(&missing, to).await, Err(reason.into()));
}

/// Whether a process runs; a zombie does not.
fn runs(pid: &str) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    status.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

#[tokio::test]
async fn exec_leaves_nothing_behind_after_its_timeout() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid");
    let check = shell(&format!("sleep 600 & echo $! > {0}.new; mv {0}.new {0}; wait", file.display()));
    let begun = Instant::now();
    let probing = check.probe(anywhere(), Duration::from_millis(500));
    assert_eq!(probing.await.unwrap_err().to_string(), "timed out after 500 ms");
    let grandchild = std::fs::read_to_string(file).expect("the script has begun");
    while runs(grandchild.trim()) {
        assert!(begun.elapsed() < DEADLINE, "process {grandchild} outlives its probe");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn grpc_wants_serving() {
    let (reporter, service) = tonic_health::server::health_reporter();
    reporter.set_service_status("shop", tonic_health::ServingStatus::NotServing).await;
    let listener = TcpListener::bind(anywhere()).await.unwrap();
    let to = listener.local_addr().unwrap();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
    let check = |service: &str| Check::Grpc(Grpc { service: service.to_owned(), tls: None });
    assert_eq!(probe(&check(""), to).await, Ok("SERVING".into()));
    assert_eq!(probe(&check("shop"), to).await, Err("NOT_SERVING".into()));
    let reason = probe(&check("unheard"), to).await.unwrap_err();
    assert!(reason.starts_with("grpc status NotFound"), "{reason}");
    assert_eq!(probe(&check(""), closed()).await, Err("connection refused".into()));
    let http1 = servers::http().await;
    assert!(probe(&check(""), http1).await.is_err());
}

#[tokio::test]
async fn grpc_speaks_tls_where_asked_for() {
    let certified = rcgen::generate_simple_self_signed(["shop.example.org".to_owned()]).unwrap();
    let pem = certified.cert.pem();
    let identity = Identity::from_pem(&pem, certified.signing_key.serialize_pem());
    let (_reporter, service) = tonic_health::server::health_reporter();
    let listener = TcpListener::bind(anywhere()).await.unwrap();
    let to = listener.local_addr().unwrap();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let mut server = Server::builder().tls_config(ServerTlsConfig::new().identity(identity)).unwrap();
    tokio::spawn(server.add_service(service).serve_with_incoming(incoming));
    let own = Verify::Against(Authorities::from_pem(pem.as_bytes()).unwrap());
    let check = |verify: &Verify, name: Option<&str>| {
        let tls = Tls::new(verify.clone(), name.map(str::to_owned)).unwrap();
        Check::Grpc(Grpc { service: String::new(), tls: Some(tls) })
    };
    assert_eq!(probe(&check(&Verify::No, None), to).await, Ok("SERVING".into()));
    assert_eq!(probe(&check(&own, Some("shop.example.org")), to).await, Ok("SERVING".into()));
    let reason = probe(&check(&own, Some("example.net")), to).await.unwrap_err();
    assert!(reason.contains("certificate"), "{reason}");
    let plain = Check::Grpc(Grpc::default());
    assert!(probe(&plain, to).await.is_err(), "plain text to a TLS server");
}

#[test]
fn settings_that_could_only_fail_are_refused_by_their_key() {
    let key = |check: Check| check.validate().map_err(|error| error.key());
    let http = |change: &dyn Fn(&mut Http)| {
        let mut http = Http::default();
        change(&mut http);
        key(Check::Http(http))
    };
    assert_eq!(http(&|_| ()), Ok(()));
    for path in ["", "index.html", "/a b", "/a#b", "http://a/"] {
        assert_eq!(http(&|http| http.path = path.into()), Err("path"), "{path:?}");
    }
    for host in ["", "a b", "user@a", "a/b", "a\r\nX: y"] {
        assert_eq!(http(&|http| http.host = Some(host.into())), Err("host"), "{host:?}");
    }
    let body = |http: &mut Http| http.body = Some(Body::Contains("a".into()));
    let head = |http: &mut Http| (http.method, http.body) = (Method::Head, Some(Body::Contains("a".into())));
    assert_eq!(http(&head), Err("method"));
    assert_eq!(http(&|http| (body(http), http.max_body = 0).1), Err("max_body"));
    assert_eq!(Body::matches("(").map_err(|error| error.key()), Err("body_matches"));
    for status in ["", "2xx", "299-200", "99", "600", "200,"] {
        assert_eq!(status.parse::<StatusSet>().map_err(|error| error.key()), Err("status"), "{status:?}");
    }
    let dns = |name: &str, answer: Option<IpAddr>| {
        key(Check::Dns(Dns { name: name.into(), record: DnsRecord::A, answer }))
    };
    assert_eq!(dns(&"a".repeat(64), None), Err("name"));
    assert_eq!(dns("a", Some(Ipv6Addr::LOCALHOST.into())), Err("answer"));
    assert_eq!("HTTPS".parse::<DnsRecord>().map_err(|error| error.key()), Err("record"));
    assert_eq!(key(Check::Smtp(Smtp { helo: "a\r\nRSET".into() })), Err("helo"));
    let reply = Reply::Contains(Vec::new());
    assert_eq!(key(Check::Udp(Udp { payload: Vec::new(), reply })), Err("expect"));
    assert_eq!(key(Check::Exec(Exec { program: "sh".into(), arguments: Vec::new() })), Err("program"));
    assert!(matches!(Tls::new(Verify::No, Some("a b".into())), Err(error) if error.key() == "server_name"));
    assert!(matches!(Authorities::from_pem(b"none"), Err(error) if error.key() == "ca"));
}
