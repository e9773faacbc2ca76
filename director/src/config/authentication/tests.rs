use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use routing::{Algorithm, Authentication, Key, Secret, Window};

use crate::config::Config;

fn parse_at(folder: &Path, ospf: &str, interface: &str) -> Result<Authentication, String> {
    let text = format!(
        "[node]\nrouter_id = \"10.255.0.1\"\ninterfaces = [\"eth1\"]\n[ospf]\n{ospf}\n\
         [[ospf.interface]]\nname = \"eth1\"\n{interface}\n"
    );
    let config = Config::parse(&folder.join("d.toml"), &text).map_err(|error| error.to_string())?;
    Ok(config.ospf.expect("ospf").interfaces[0].authentication.clone())
}

fn parse(interface: &str) -> Result<Authentication, String> {
    parse_at(Path::new("/nowhere"), "", interface)
}

#[test]
fn keys_are_understood_with_their_windows() {
    let authentication = parse(
        "keys = [{ id = 1, algorithm = \"md5\", secret = \"old\", send_until = 2027-01-01T00:00:00Z },\n\
         { id = 2, algorithm = \"hmac-sha-256\", secret = \"new\", send_from = 2027-01-01T02:00:00+02:00,\n\
         accept_from = 2026-12-31T23:00:00Z, accept_until = 2028-01-01T00:00:00Z }]",
    );
    let turn = 1_798_761_600; // 2027-01-01T00:00:00Z
    let until = Window { from: None, until: Some(turn) };
    let from = Window { from: Some(turn), until: None };
    let accept = Window { from: Some(turn - 3_600), until: Some(turn + 365 * 86_400) };
    let old = Key { send: until, ..Key::new(1, Algorithm::Md5, Secret::new("old")) };
    let new = Key { send: from, accept, ..Key::new(2, Algorithm::HmacSha256, Secret::new("new")) };
    assert_eq!(authentication, Ok(Authentication::Keys(vec![old, new])));
}

#[test]
fn a_password_is_understood() {
    let authentication = parse("authentication = { type = \"simple\", secret = \"sesame\" }");
    assert_eq!(authentication, Ok(Authentication::Simple(Secret::new("sesame"))));
}

#[test]
fn every_mistake_names_its_remedy_and_no_secret() {
    let key =
        |rest: &str| format!("keys = [{{ id = 1, algorithm = \"hmac-sha-256\", secret = \"hush\"{rest} }}]");
    let rows = [
        ("authentication = { type = \"md5\", secret = \"hush\" }".to_owned(), "use \"simple\", or `keys`"),
        ("authentication = { type = \"simple\", secret = \"hush-hush\" }".to_owned(), "1 to 8"),
        ("authentication = { type = \"simple\" }".to_owned(), "secret_file"),
        ("keys = []".to_owned(), "no key is listed"),
        ("keys = [{ id = 1, algorithm = \"sha\", secret = \"hush\" }]".to_owned(), "use hmac-sha-256"),
        ("keys = [{ id = 0, algorithm = \"md5\", secret = \"hush\" }]".to_owned(), "use 1 to 255"),
        (key(", secret_file = \"f\""), "not both"),
        (key(", send_from = 2027-01-01"), "with date, time and offset"),
        (key(", send_from = 2027-01-01T00:00:00Z, send_until = 2026-01-01T00:00:00Z"), "after the start"),
        (key(", life = 3"), "unknown field"),
        (format!("{}\nauthentication = {{ type = \"simple\", secret = \"hush\" }}", key("")), "not both"),
    ];
    for (text, remedy) in rows {
        let message = parse(&text).expect_err(&text);
        assert!(message.contains(remedy) && message.starts_with("/nowhere/d.toml:"), "{text}: {message}");
        assert!(!message.contains("hush"), "{message}");
    }
}

#[test]
fn what_version_3_does_not_know_is_refused_when_it_is_spoken() {
    let rows = [
        "authentication = { type = \"simple\", secret = \"sesame\" }",
        "keys = [{ id = 1, algorithm = \"md5\", secret = \"swordfish\" }]",
    ];
    for row in rows {
        let message = parse_at(Path::new("/nowhere"), "ipv6 = true", row).expect_err(row);
        assert!(message.contains("RFC 7166"), "{message}");
        parse(row).expect("version 2 alone knows it");
    }
}

#[test]
fn secret_files_are_read_unless_others_can() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("ospf.key");
    let keys = "keys = [{ id = 1, algorithm = \"hmac-sha-512\", secret_file = \"ospf.key\" }]";
    let read = |content: &str, mode: u32| {
        std::fs::write(&path, content).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("set");
        parse_at(folder.path(), "", keys)
    };
    let expected = Key::new(1, Algorithm::HmacSha512, Secret::new("swordfish"));
    assert_eq!(read("swordfish\n", 0o640), Ok(Authentication::Keys(vec![expected])));
    assert!(read("swordfish\n", 0o644).expect_err("open").contains("chmod 600"));
    assert!(read("\n", 0o600).expect_err("empty").contains("is empty"));
    assert!(read("a\nb\n", 0o600).expect_err("two").contains("one line"));
    std::fs::remove_file(&path).expect("removed");
    assert!(parse_at(folder.path(), "", keys).expect_err("missing").contains("ospf.key"));
}

#[test]
fn secrets_do_not_appear_in_debug_output() {
    let config = parse("keys = [{ id = 1, algorithm = \"hmac-sha-256\", secret = \"hush\" }]");
    assert!(!format!("{config:?}").contains("hush"));
}
