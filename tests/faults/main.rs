//! The real program as real processes against a real Kafka, under faults that a seed draws, judged from the topics
//! alone. A short form runs with all other tests; `make faults` runs the long one.

mod inflict;
mod inputs;
mod judge;
mod round;
mod schedule;
mod sound;
#[path = "../support/support.rs"]
mod support;
mod table;
mod watch;
mod world;

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;
use libtest_mimic::{Arguments, Failed, Trial};
use sweepstream::config::GroupProtocol;

use round::Plan;
use table::Table;
use world::Broker;

/// Longer than any call waits for its answer: 10 s, and 4 s in transactions.
const LONG_PAUSE: Duration = Duration::from_millis(10_500);
/// Longer than calls in transactions wait, and than sessions.
const SHORT_PAUSE: Duration = Duration::from_millis(4_500);

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    harness: Arguments,
    /// Many faults over many texts, for both group protocols, instead of a few
    #[arg(long)]
    long: bool,
    /// The schedule is a function of this [default: drawn]
    #[arg(long)]
    seed: Option<u64>,
    /// Processes that the long form kills, at least
    #[arg(long, default_value_t = 100)]
    kills: u32,
    /// Texts that the long form embeds under faults, at least
    #[arg(long, default_value_t = 5_000)]
    inputs: usize,
}

fn main() {
    let cli = Cli::parse();
    let seed = cli.seed.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0 % 1_000_000);
    let (long, kills, inputs) = (cli.long, cli.kills, cli.inputs);
    let name = if long { "long_form" } else { "short_form" };
    let sound = |name: &str, check: fn()| {
        Trial::test(name, move || {
            check();
            Ok(())
        })
    };
    let trials = vec![
        sound("the_judge_sees_every_wrong_verdict", sound::the_judge_sees_every_wrong_verdict),
        sound("the_judge_sees_every_wrong_result", sound::the_judge_sees_every_wrong_result),
        sound("a_seed_gives_one_schedule_with_every_fault", sound::a_seed_gives_one_schedule_with_every_fault),
        Trial::test(name, move || run(seed, long, kills, inputs)),
    ];
    libtest_mimic::run(&cli.harness, trials).exit();
}

fn plans(seed: u64, long: bool, kills: u32, inputs: usize) -> Vec<Plan> {
    if !long {
        return vec![Plan {
            name: "classic".into(),
            protocol: GroupProtocol::Classic,
            steps: schedule::short(seed),
            first_inputs: 60,
            inputs: 160,
            searches: 8,
            epochs: 60,
        }];
    }
    let plan = |protocol: GroupProtocol| {
        let steps = schedule::long(seed ^ protocol as u64, kills.div_ceil(2));
        Plan {
            name: protocol.to_string(),
            protocol,
            first_inputs: 400,
            inputs: inputs.div_ceil(2),
            searches: 6,
            // So that trials end throughout the schedule, and the last ones after it.
            epochs: 3 * steps.len(),
            steps,
        }
    };
    [GroupProtocol::Classic, GroupProtocol::Consumer].map(plan).into()
}

fn run(seed: u64, long: bool, kills: u32, inputs: usize) -> Result<(), Failed> {
    let began = Instant::now();
    let again = if long {
        format!("make faults ARGS='--seed {seed} --kills {kills} --inputs {inputs}'")
    } else {
        format!("cargo test --test faults -- --seed {seed}")
    };
    println!("seed {seed}; the same schedule again: {again}");
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("faults-{seed}"));
    drop(std::fs::remove_dir_all(&folder));
    let table = Mutex::new(Table::default());
    let pause = if long { LONG_PAUSE } else { SHORT_PAUSE };
    // What the harness itself cannot do, it panics over; what was done until then is worth a table, too.
    let result = std::panic::catch_unwind(|| play(&plans(seed, long, kills, inputs), pause, &folder, &table));
    let result = result.unwrap_or_else(|_| Err(anyhow::anyhow!("the harness panicked")));
    let table = table.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    table.print();
    println!("{} processes killed, {:.0} s", table.kills(), began.elapsed().as_secs_f64());
    match result {
        Ok(()) => {
            drop(std::fs::remove_dir_all(&folder));
            Ok(())
        }
        Err(error) => Err(format!("seed {seed}: {error:#}\nlogs: {}", folder.display()).into()),
    }
}

fn play(plans: &[Plan], pause: Duration, folder: &std::path::Path, table: &Mutex<Table>) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut broker = Broker::start(folder, pause)?;
    let mut complaints = Vec::new();
    for plan in plans {
        let judged = round::play(plan, &mut broker, folder, table)?;
        println!(
            "{}: {} inputs, {} trials, {} complaints",
            plan.name,
            judged.inputs,
            judged.trials,
            judged.complaints.len()
        );
        complaints.extend(judged.complaints);
    }
    let count = complaints.len();
    complaints.truncate(20);
    anyhow::ensure!(count == 0, "{count} complaints:\n{}", complaints.join("\n"));
    Ok(())
}
