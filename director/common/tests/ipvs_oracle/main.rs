//! Our schedulers against IPVS: the same servers, arrivals and departures, and the same choices.
//!
//! What IPVS answered is in `answers.txt`; [`ours_chooses_as_ipvs_answered`] needs nothing else. Where IPVS is, under
//! Debian's kernel in `tests/stock-kernel.sh`, [`ipvs_answers_as_recorded`] asks it again. To record the answers anew
//! (after a change to `cases.rs`), run from the repository:
//!
//! ```text
//! suite=$(cargo test --workspace --no-run --message-format=json | jq -r 'select(.target.name=="ipvs_oracle").executable')
//! tests/stock-kernel.sh --timeout 900 env RECORD=1 $suite ipvs_answers --nocapture | sed -n 's/^answer //p' \
//!   > director/common/tests/ipvs_oracle/answers.txt
//! ```

mod cases;
mod ipvs;
mod ours;

use std::collections::BTreeMap;

use cases::{Case, cases};

/// The choice for each arrival, by number of the server; `None` where there was nobody to choose.
type Answers = Vec<Option<usize>>;

fn recorded() -> BTreeMap<&'static str, Answers> {
    let lines = include_str!("answers.txt").lines();
    let parse = |line: &'static str| {
        let (name, answers) = line.split_once(": ").expect("a name and its answers");
        (name, answers.split(' ').map(|answer| answer.parse().ok()).collect())
    };
    lines.map(parse).collect()
}

fn written(answers: &Answers) -> String {
    let words = answers.iter().map(|answer| answer.map_or("-".to_owned(), |server| server.to_string()));
    words.collect::<Vec<_>>().join(" ")
}

fn assert_same(case: &Case, ours: &Answers, theirs: &Answers, who: &str) {
    assert_eq!(ours.len(), theirs.len(), "{}", case.name);
    let differs = ours.iter().zip(theirs).position(|(ours, theirs)| ours != theirs);
    if let Some(at) = differs {
        panic!(
            "{}: arrival {at} of {} by {who}:\n{}\nIPVS:\n{}",
            case.name,
            ours.len(),
            written(ours),
            written(theirs)
        );
    }
}

#[test]
fn ours_chooses_as_ipvs_answered() {
    let recorded = recorded();
    let cases = cases();
    assert_eq!(recorded.len(), cases.len(), "record the answers anew");
    for case in cases {
        let theirs = recorded.get(case.name.as_str()).expect("an answer for every case");
        assert_same(&case, &ours::replay(&case), theirs, "ours");
    }
}

#[test]
fn ipvs_answers_as_recorded() {
    if !ipvs::is_guest() {
        // `tests/tests/stock_kernel.rs` starts one and runs this in it.
        println!("skipped: IPVS is asked in the guest of tests/stock-kernel.sh only");
        return;
    }
    ipvs::prepare().expect("IPVS");
    let record = std::env::var_os("RECORD").is_some();
    let recorded = if record { BTreeMap::new() } else { recorded() };
    for case in cases() {
        let answers = ipvs::ask(&case);
        if record {
            println!("answer {}: {}", case.name, written(&answers));
            continue;
        }
        assert_same(&case, &recorded[case.name.as_str()], &answers, "the record");
    }
    println!("IPVS was asked");
}
