//! Areas of every type with FRR and BIRD as the switch: their external routes become ours where the area has any, and
//! two directors' external VIP is an equal-cost route in the switch's kernel.

use std::time::Duration;

use anyhow::{Result, ensure};
use cluster_tests::netns::{is_root, until};

use crate::{
    lab::{Area, Brand, Extra, Family, Lab, Net},
    speaker::Speaker,
};

/// LSAs of types that carry externals, as a speaker holds them: type 5 and type 7.
fn external_lsas(speaker: &mut Speaker) -> Result<(usize, usize)> {
    let status = speaker.status()?;
    let kinds: Vec<u64> =
        status["lsdb"].as_array().into_iter().flatten().filter_map(|lsa| lsa["kind"].as_u64()).collect();
    let count = |wanted: [u64; 2]| kinds.iter().filter(|kind| wanted.contains(kind)).count();
    Ok((count([5, 0x4005]), count([7, 0x2007])))
}

fn two_directors_in(test: &str, family: Family, brand: Brand, area: Area) -> Result<()> {
    if !is_root(test) {
        return Ok(());
    }
    let lab = Lab::with(family, brand, Net::PointToPoint, Extra { area, ..Extra::NONE })?;
    // Where there are externals the VIP is one; E1 for one brand, E2 for the other.
    let external = area != Area::Stub;
    let vip = format!("{}=10{}", family.vip_prefix(), if external { "e" } else { "" });
    let start = |director: usize| {
        let router = format!("10.255.0.{}", director + 1);
        let interface = format!("eth1:p2p:hello=1:dead=4{}", area.parts());
        let metric_type: &[&str] = if brand == Brand::Frr { &["--e1"] } else { &[] };
        let arguments = [&[&router, lab.option(), &interface, &vip], metric_type].concat();
        Speaker::start(&lab.directors[director], &arguments)
    };
    let (mut one, mut two) = (start(0)?, start(1)?);
    until("both are full", Duration::from_secs(30), || Ok(one.full()? == 1 && two.full()? == 1))?;
    lab.until_next_hops("ECMP of both", 2, 20)?;
    until("route learned", Duration::from_secs(10), || Ok(lab.learned(0)?.contains(family.behind())))?;
    let (outside, _) = family.outside();
    // BIRD 2.0.12 finds itself no forwarding address for an NSSA-LSA of version 3, and so originates none.
    let told = external && (family, brand, area) != (Family::V6, Brand::Bird, Area::Nssa);
    if told {
        until("external route learned", Duration::from_secs(10), || Ok(lab.learned(0)?.contains(outside)))?;
    }
    let (type_5, type_7) = external_lsas(&mut one)?;
    match area {
        Area::Stub => ensure!((type_5, type_7) == (0, 0), "{type_5} and {type_7} in a stub area"),
        Area::Nssa => {
            ensure!(type_5 == 0 && type_7 >= 2 + usize::from(told), "{type_5} and {type_7} in an NSSA")
        }
        Area::Backbone | Area::Normal => {
            ensure!(type_5 >= 3 && type_7 == 0, "{type_5} and {type_7} in a normal area");
        }
    }
    ensure!(!lab.learned(0)?.contains(family.vip()), "a director must not install the VIP of another");
    lab.stays(2, Duration::from_secs(2))?;
    if (family, brand, area) == (Family::V6, Brand::Frr, Area::Nssa) {
        // FRR 8.4.4 shows a withdrawn NSSA-LSA of version 3 as of MaxAge in its database, and keeps its next hop.
        return Ok(());
    }
    two.tell("announce")?;
    lab.until_next_hops("withdrawn", 1, 3)?;
    two.tell(&format!("announce {vip}"))?;
    lab.until_next_hops("announced again", 2, 8)?;
    lab.stays(2, Duration::from_secs(2))?;
    two.tell("stop")?;
    lab.until_next_hops("clean stop", 1, 3)?;
    Ok(())
}

macro_rules! cases {
    ($($name:ident: $family:ident, $brand:ident, $area:ident;)*) => {$(
        #[test]
        fn $name() -> Result<()> {
            two_directors_in(stringify!($name), Family::$family, Brand::$brand, Area::$area)
        }
    )*};
}

cases! {
    frr_in_a_normal_area: V4, Frr, Normal;
    frr_in_a_stub_area: V4, Frr, Stub;
    frr_in_an_nssa: V4, Frr, Nssa;
    bird_in_a_normal_area: V4, Bird, Normal;
    bird_in_a_stub_area: V4, Bird, Stub;
    bird_in_an_nssa: V4, Bird, Nssa;
    frr_in_a_normal_area_in_version_3: V6, Frr, Normal;
    frr_in_a_stub_area_in_version_3: V6, Frr, Stub;
    frr_in_an_nssa_in_version_3: V6, Frr, Nssa;
    bird_in_a_normal_area_in_version_3: V6, Bird, Normal;
    bird_in_a_stub_area_in_version_3: V6, Bird, Stub;
    bird_in_an_nssa_in_version_3: V6, Bird, Nssa;
}
