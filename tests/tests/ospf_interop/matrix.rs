//! The matrix of what can be combined with FRR and BIRD as the switch: version, kind of network, authentication, BFD,
//! kind of area, and what happens at the end.
//!
//! All combinations are some six hundred; [`ROWS`] is a pairwise covering of them: any two values that can go together do
//! so in one row at least, which a test checks. `MATRIX=all` makes them all, in half an hour;
//! `MATRIX_ROWS=10..20` some of whichever it is. Links without authentication and without BFD are not among them, as
//! `areas` and the lives in `main` have them all. Algorithms and TTL security are in `authentication`, silence of the
//! switch in `liveness`.

use std::{
    collections::BTreeSet,
    sync::Mutex,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use cluster_tests::netns::{is_root, until};
use serde_json::Value;

use crate::{
    lab::{Area, Brand, Extra, Family, Lab, Net},
    speaker::Speaker,
};
use Auth::{Hmac, Md5, Simple};
use End::{Kill, LinkDown, Mtu, RollOver};
use Segment::{Elected, Link, Member};

/// Rows at work at the same time: they wait most of theirs.
const AT_ONCE: usize = 6;
const TEN: Duration = Duration::from_secs(10);
const THIRTY: Duration = Duration::from_secs(30);
/// BIRD keeps the 5 s of MinLSInterval (RFC 2328, section 12.4) between two instances of its own Router-LSA, and only
/// the second one takes a neighbour out that is lost.
const CALM: Duration = Duration::from_millis(5500);

/// The network between switch and directors.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Segment {
    /// A point-to-point link for each.
    Link,
    /// One segment on which the directors have priority 0 and the switch is designated router.
    Member,
    /// One segment on which the directors can be elected.
    Elected,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Auth {
    None,
    Simple,
    Md5,
    Hmac,
}

/// What happens once the routes are there.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    LinkDown,
    Kill,
    /// Another key, without loss.
    RollOver,
    /// A director comes back with another MTU, and says so.
    Mtu,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Row(Brand, Family, Segment, Auth, Watch, Area, End);

/// Whether BFD watches.
type Watch = bool;

const FRR: Brand = Brand::Frr;
const BIRD: Brand = Brand::Bird;
const V2: Family = Family::V4;
const V3: Family = Family::V6;
const BFD: Watch = true;
const HELLOS: Watch = false;

const ROWS: [Row; 15] = [
    Row(FRR, V2, Link, Md5, HELLOS, Area::Nssa, Mtu),
    Row(FRR, V2, Link, Md5, BFD, Area::Stub, RollOver),
    Row(FRR, V2, Link, Simple, BFD, Area::Normal, Kill),
    Row(FRR, V2, Member, Md5, BFD, Area::Nssa, LinkDown),
    Row(FRR, V3, Elected, Auth::None, HELLOS, Area::Nssa, Kill),
    Row(FRR, V3, Elected, Hmac, HELLOS, Area::Normal, Mtu),
    Row(FRR, V3, Member, Hmac, BFD, Area::Stub, Kill),
    Row(BIRD, V2, Elected, Simple, HELLOS, Area::Stub, LinkDown),
    Row(BIRD, V2, Elected, Md5, BFD, Area::Normal, Kill),
    Row(BIRD, V2, Link, Hmac, HELLOS, Area::Normal, LinkDown),
    Row(BIRD, V2, Member, Hmac, HELLOS, Area::Normal, RollOver),
    Row(BIRD, V2, Member, Simple, BFD, Area::Nssa, Mtu),
    Row(BIRD, V2, Member, Auth::None, HELLOS, Area::Stub, Mtu),
    Row(BIRD, V3, Elected, Hmac, BFD, Area::Nssa, RollOver),
    Row(BIRD, V3, Link, Auth::None, BFD, Area::Normal, LinkDown),
];

impl Row {
    /// What of the whole product can be: version 3 knows no authentication but its trailer, FRR 8.4 no HMAC in version
    /// 2 and no second key in version 3, and only keys roll over.
    fn is_possible(self) -> bool {
        let Self(brand, family, _, auth, _, _, end) = self;
        let known = match (family, brand) {
            (Family::V6, _) => matches!(auth, Auth::None | Hmac),
            (Family::V4, Brand::Frr) => auth != Hmac,
            (Family::V4, Brand::Bird) => true,
        };
        let rolls = matches!(auth, Md5 | Hmac) && (brand, family) != (FRR, V3);
        known && (end != RollOver || rolls)
    }

    /// Its values by name, each with the factor that it is one of.
    fn values(self) -> [String; 7] {
        let Self(brand, family, segment, auth, watch, area, end) = self;
        [
            format!("{brand:?}"),
            format!("OSPF for {family:?}"),
            format!("segment {segment:?}"),
            format!("authentication {auth:?}"),
            format!("BFD {watch}"),
            format!("area {area:?}"),
            format!("end {end:?}"),
        ]
    }

    fn pairs(self) -> BTreeSet<[String; 2]> {
        let values = self.values();
        let of = |at: usize| (0..at).map(move |other| (other, at));
        (0..values.len()).flat_map(of).map(|(one, two)| [values[one].clone(), values[two].clone()]).collect()
    }

    fn product() -> impl Iterator<Item = Self> {
        let brands = [FRR, BIRD].into_iter();
        let rows = brands.flat_map(|brand| [V2, V3].map(|family| (brand, family)));
        let rows = rows.flat_map(|row| [Link, Member, Elected].map(|segment| (row, segment)));
        let rows = rows.flat_map(|row| [Auth::None, Simple, Md5, Hmac].map(|auth| (row, auth)));
        let rows = rows.flat_map(|row| [BFD, HELLOS].map(|watch| (row, watch)));
        let rows = rows.flat_map(|row| [Area::Normal, Area::Stub, Area::Nssa].map(|area| (row, area)));
        let rows = rows.flat_map(|row| [LinkDown, Kill, RollOver, Mtu].map(|end| (row, end)));
        rows.map(|((((((brand, family), segment), auth), watch), area), end)| {
            Self(brand, family, segment, auth, watch, area, end)
        })
    }
}

#[test]
fn every_pair_of_values_that_can_be_is_in_a_row() {
    let pairs = |rows: &mut dyn Iterator<Item = Row>| rows.flat_map(Row::pairs).collect::<BTreeSet<_>>();
    let possible = pairs(&mut Row::product().filter(|row| row.is_possible()));
    assert!(possible.len() > 150, "{}", possible.len());
    assert!(ROWS.iter().all(|row| row.is_possible()));
    let covered = pairs(&mut ROWS.into_iter());
    let missing: Vec<_> = possible.difference(&covered).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// Authentication with key 1, or key 2, or both: for the switch and for the speaker.
struct Keys {
    brand: Brand,
    family: Family,
    auth: Auth,
}

const SECRETS: [&str; 2] = ["yesterday", "tomorrow"];

impl Keys {
    /// Lines for an interface of the switch, with these keys.
    fn switch(&self, ids: &[usize]) -> String {
        let algorithm = if self.auth == Md5 { "keyed md5" } else { "hmac sha256" };
        let key = |id: &usize| (*id, SECRETS[id - 1]);
        match (self.auth, self.brand) {
            (Auth::None, _) => String::new(),
            (Simple, Brand::Frr) => " ip ospf authentication\n ip ospf authentication-key sesame\n".into(),
            (Simple, Brand::Bird) => "authentication simple; password \"sesame\";".into(),
            (Md5 | Hmac, Brand::Frr) if self.family == Family::V4 => {
                let line = |(id, secret)| format!(" ip ospf message-digest-key {id} md5 {secret}\n");
                let lines: String = ids.iter().map(key).map(line).collect();
                format!(" ip ospf authentication message-digest\n{lines}")
            }
            (Md5 | Hmac, Brand::Frr) => {
                format!(" ipv6 ospf6 authentication key-id 1 hash-algo hmac-sha-256 key {}\n", SECRETS[0])
            }
            (Md5 | Hmac, Brand::Bird) => {
                let line =
                    |(id, secret)| format!("password \"{secret}\" {{ id {id}; algorithm {algorithm}; }};");
                let lines: String = ids.iter().map(key).map(line).collect();
                format!("authentication cryptographic; {lines}")
            }
        }
    }

    /// A key as the speaker takes it; `from` is when it begins to send with it.
    fn speaker(&self, id: usize, from: &str) -> String {
        let algorithm = if self.auth == Md5 { "md5" } else { "hmac-sha-256" };
        // FRR 8.4 swaps the bytes of the protocol's id in version 3.
        let swapped = if (self.brand, self.family) == (FRR, V3) { ",,swapped" } else { "" };
        format!("{id},{algorithm},{},{from}{swapped}", SECRETS[id - 1])
    }

    /// Parts of a director's interface.
    fn parts(&self) -> String {
        match self.auth {
            Auth::None => String::new(),
            Simple => ":password=sesame".into(),
            Md5 | Hmac => format!(":key={}", self.speaker(1, "")),
        }
    }
}

/// One row with its switch and its directors.
struct Case {
    row: Row,
    keys: Keys,
    lab: Lab,
    directors: [Speaker; 2],
    /// When the switch had both as neighbours.
    complete: Instant,
}

fn run(row: Row) -> Result<()> {
    let Row(brand, family, segment, auth, bfd, area, end) = row;
    let keys = Keys { brand, family, auth };
    let priority = if segment == Elected { ":priority=5" } else { "" };
    let speaker = format!("{}{priority}", keys.parts());
    let extra = Extra { switch: &keys.switch(&[1]), speaker: &speaker, bfd, area, ..Extra::NONE };
    let net = if segment == Link { Net::PointToPoint } else { Net::Broadcast };
    let lab = Lab::with(family, brand, net, extra)?;
    let directors = [lab.speaker(0)?, lab.speaker(1)?];
    let mut case = Case { row, keys, lab, directors, complete: Instant::now() };
    case.routes_come_and_go()?;
    match end {
        LinkDown => case.link_goes_down(),
        Kill => case.director_dies(),
        RollOver => case.key_rolls_over(),
        Mtu => case.mtu_differs(),
    }
}

impl Case {
    /// Everybody is Full with whom it should be, the switch has both next hops, and one goes and comes with its
    /// announcement.
    fn routes_come_and_go(&mut self) -> Result<()> {
        // Where all three can be elected, each is designated, its backup, or adjacent to both.
        let adjacencies = if self.row.2 == Elected { 2 } else { 1 };
        for director in &mut self.directors {
            until("Full", THIRTY, || Ok(director.full()? == adjacencies))?;
        }
        self.lab.until_next_hops("ECMP of both", 2, 30)?;
        self.complete = Instant::now();
        let mut states = Vec::new();
        for at in 0..2 {
            until("route learned", TEN, || Ok(self.lab.learned(at)?.contains(self.lab.family.behind())))?;
            let status = self.directors[at].status()?;
            ensure!(status["interfaces"][0]["area_kind"] == self.area_kind(), "{status}");
            states.push(status["interfaces"][0]["state"].as_str().unwrap_or_default().to_owned());
        }
        let fits = |state: &String| match self.row.2 {
            Link => state == "PointToPoint",
            Member => state == "DrOther",
            Elected => ["Dr", "Backup", "DrOther"].contains(&state.as_str()),
        };
        ensure!(states.iter().all(fits), "{states:?}");
        ensure!(self.row.2 != Elected || states.iter().any(|state| state != "DrOther"), "{states:?}");
        let two = &mut self.directors[1];
        two.tell("announce")?;
        self.lab.until_next_hops("withdrawn", 1, 5)?;
        two.tell(&format!("announce {}=10", self.lab.family.vip_prefix()))?;
        self.lab.until_next_hops("announced again", 2, 10)?;
        if self.row.4 {
            let watched = |status: &Value| {
                let neighbors = status["neighbors"].as_array().into_iter().flatten();
                let switch = neighbors.filter(|neighbor| neighbor["router_id"] == "10.255.1.1");
                switch.into_iter().all(|switch| switch["bfd"]["state"] == "up")
            };
            until("watched", TEN, || Ok(watched(&two.status()?)))?;
        }
        self.nothing_is_refused()
    }

    fn area_kind(&self) -> &'static str {
        match self.row.5 {
            Area::Backbone | Area::Normal => "normal",
            Area::Stub => "stub",
            Area::Nssa => "nssa",
        }
    }

    fn nothing_is_refused(&mut self) -> Result<()> {
        for director in &mut self.directors {
            let counters = director.status()?["counters"].clone();
            let mut reasons = counters.as_object().into_iter().flat_map(|all| all.keys());
            ensure!(!reasons.any(|reason| reason.starts_with("authentication")), "refused: {counters}");
        }
        Ok(())
    }

    /// The moment from which on the switch says at once what happens.
    fn calm(&self) -> Instant {
        if self.row.0 == BIRD && self.row.4 {
            std::thread::sleep(CALM.saturating_sub(self.complete.elapsed()));
        }
        Instant::now()
    }

    /// Waits for the one next hop that is left, and tells by the time whether BFD or the dead interval told the switch.
    fn one_is_left(&mut self, what: &str, start: Instant) -> Result<()> {
        // A designated router that dies takes the network with it until the next election.
        self.lab.until_next_hops(what, 1, if self.row.2 == Elected { 25 } else { 10 })?;
        if self.row.4 && self.row.2 != Elected {
            let took = start.elapsed();
            ensure!(took < Duration::from_millis(2500), "{what}: BFD took {took:?}");
        }
        Ok(())
    }

    fn link_goes_down(&mut self) -> Result<()> {
        let start = self.calm();
        self.lab.switch.ip("link set s2 down")?;
        self.one_is_left("link down", start)
    }

    fn director_dies(&mut self) -> Result<()> {
        let start = self.calm();
        self.directors[1].kill()?;
        self.one_is_left("killed", start)
    }

    /// Both ends know both keys while either begins to send with the new one; nobody loses anybody meanwhile.
    fn key_rolls_over(&mut self) -> Result<()> {
        let started = Instant::now();
        let before = self.ages()?;
        let key = |id, from: &str| self.keys.speaker(id, from);
        // The second key is accepted at once, and would be sent with from 2100 on.
        let both_old = format!("{} {}", key(1, ""), key(2, "4102444800"));
        let both_new = format!("{} {}", key(1, ""), key(2, ""));
        let new = key(2, "");
        self.tell_keys(&both_old)?;
        self.switch_keys(&[1, 2])?;
        self.tell_keys(&both_new)?;
        self.switch_keys(&[2])?;
        self.tell_keys(&new)?;
        let lasted = u64::try_from(started.elapsed().as_millis())?;
        for (before, now) in before.iter().zip(self.ages()?) {
            ensure!(now + 1000 >= before + lasted, "Full for {now} ms, {before} ms before {lasted} ms");
        }
        self.nothing_is_refused()
    }

    /// For how long the switch has been Full, in milliseconds, by each director.
    fn ages(&mut self) -> Result<Vec<u64>> {
        let age = |director: &mut Speaker| -> Result<u64> {
            let status = director.status()?;
            let neighbors = status["neighbors"].as_array().context("neighbors")?;
            let switch =
                neighbors.iter().find(|one| one["router_id"] == "10.255.1.1" && one["state"] == "Full");
            switch.and_then(|switch| switch["in_state_ms"].as_u64()).context("the switch is not Full")
        };
        self.directors.iter_mut().map(age).collect()
    }

    /// Gives the directors other keys, and lets more than an interval of Hellos go by.
    fn tell_keys(&mut self, keys: &str) -> Result<()> {
        for director in &mut self.directors {
            director.tell(&format!("keys eth1 {keys}"))?;
        }
        self.lab.stays(2, Duration::from_secs(2))
    }

    /// Gives the switch other keys, and lets more than an interval of Hellos go by.
    fn switch_keys(&mut self, ids: &[usize]) -> Result<()> {
        match self.lab.brand {
            Brand::Bird => self.lab.reconfigure_bird(&self.keys.switch(ids))?,
            Brand::Frr => {
                let change = match ids {
                    [1, 2] => format!("ip ospf message-digest-key 2 md5 {}", SECRETS[1]),
                    _ => "no ip ospf message-digest-key 1".to_owned(),
                };
                for device in self.lab.devices() {
                    let interface = format!("interface {device}");
                    self.lab.daemons.vtysh(&["configure terminal", &interface, &change])?;
                }
            }
        }
        self.lab.stays(2, Duration::from_secs(2))
    }

    fn mtu_differs(&mut self) -> Result<()> {
        self.directors[1].tell("stop")?;
        self.lab.until_next_hops("stopped", 1, 25)?;
        self.lab.directors[1].ip("link set eth1 mtu 1400")?;
        let mut small = self.lab.speaker(1)?;
        let shown = |status: Value| {
            let neighbors = status["neighbors"].as_array().cloned().unwrap_or_default();
            neighbors.iter().any(|neighbor| neighbor["reason"] == "MTU: peer 1500, ours 1400")
        };
        until("the reason is shown", Duration::from_secs(20), || Ok(shown(small.status()?)))?;
        ensure!(small.full()? == 0, "Full in spite of the MTU");
        // None while it unsettles an election.
        ensure!(self.lab.next_hops()?.len() <= 1, "a next hop without an adjacency");
        Ok(())
    }
}

/// The rows that the environment asks for, each with its number.
fn chosen() -> Result<Vec<(usize, Row)>> {
    let all: Vec<Row> = match std::env::var("MATRIX") {
        Ok(all) if all == "all" => Row::product().filter(|row| row.is_possible()).collect(),
        _ => ROWS.to_vec(),
    };
    let mut rows: Vec<_> = all.into_iter().enumerate().collect();
    if let Ok(range) = std::env::var("MATRIX_ROWS") {
        let bounds = range.split_once("..").context("MATRIX_ROWS: 10..20, without the last")?;
        let range = bounds.0.parse().context("MATRIX_ROWS")?..bounds.1.parse().context("MATRIX_ROWS")?;
        rows.retain(|(number, _)| range.contains(number));
    }
    ensure!(!rows.is_empty(), "MATRIX_ROWS leaves no row");
    Ok(rows)
}

#[test]
fn every_row_of_the_matrix() -> Result<()> {
    if !is_root("every_row_of_the_matrix") {
        return Ok(());
    }
    let start = Instant::now();
    let rows = chosen()?;
    let count = rows.len();
    let chosen = rows.into_iter();
    let (waiting, failed) = (Mutex::new(chosen), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().expect("invariant: nobody panics with it").next();
                    let Some((at, row)) = next else { return };
                    let begin = Instant::now();
                    // Daemons of others have no real-time class: BFD of 50 ms may be late on a busy machine.
                    let result = run(row).or_else(|error| {
                        eprintln!("row {at} {row:?}: once more, for {error:#}");
                        run(row)
                    });
                    eprintln!("row {at} {row:?}: {:?}, {result:?}", begin.elapsed());
                    if let Err(error) = result {
                        let failure = format!("row {at} {row:?}: {error:#}");
                        failed.lock().expect("invariant: nobody panics with it").push(failure);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("invariant: nobody panics with it");
    ensure!(failed.is_empty(), "{} of {count} rows:\n{}", failed.len(), failed.join("\n"));
    eprintln!("{count} rows in {:?}", start.elapsed());
    Ok(())
}
