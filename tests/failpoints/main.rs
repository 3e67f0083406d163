//! The program with failpoints: killed, failed, frozen and broken at named points of its code.
//!
//! This binary is both the tests and the program they test: started with a plan in its environment, it arms the
//! plan's points and does what `sweepstream` does.

mod answers;
mod deaths;
mod ends;
mod errors;
#[path = "../support/lab.rs"]
mod lab;
mod program;
#[path = "../support/support.rs"]
mod support;
mod zombies;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    if let Ok(plan) = std::env::var(program::PLAN) {
        return program::run(&plan);
    }
    let mut arguments = Arguments::from_args();
    // Nearly all the time is spent waiting for sessions and transactions of dead processes to end.
    arguments.test_threads = arguments.test_threads.or(Some(16));
    let mut tests = vec![
        case("every_point_in_the_code_is_tested", every_point_in_the_code_is_tested),
        case("points_are_compiled_into_tests_alone", points_are_compiled_into_tests_alone),
    ];
    // Those that wait longest come first.
    tests.extend(zombies::tests());
    tests.extend(errors::tests());
    tests.extend(ends::tests());
    tests.extend(deaths::tests());
    tests.extend(answers::tests());
    libtest_mimic::run(&arguments, tests).exit_code()
}

/// A test; it fails by panicking.
fn case(name: impl Into<String>, test: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, move || {
        test();
        Ok(())
    })
}

/// Names of all points in a folder's files.
fn points_in(folder: &Path, points: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            points_in(&path, points);
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let names = text.split("fail_point!(\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned());
        for name in names {
            assert!(points.insert(name.clone()), "two points are named {name}");
        }
    }
}

fn every_point_in_the_code_is_tested() {
    let mut there = BTreeSet::new();
    points_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut there);
    let tested: BTreeSet<String> =
        deaths::POINTS.iter().chain(&errors::POINTS).chain(&ends::POINTS).map(|&name| name.to_owned()).collect();
    assert_eq!(tested, there);
}

fn points_are_compiled_into_tests_alone() {
    assert!(fail::has_failpoints());
    let manifest = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let manifest: toml::Table = manifest.parse().unwrap();
    // A bare version: no feature of it is asked for.
    assert!(manifest["dependencies"]["fail"].is_str());
    assert!(manifest.get("features").is_none_or(|features| !features.to_string().contains("fail")));
}
