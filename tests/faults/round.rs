//! One round: an application under faults, two that are left in peace, and the verdict.
//!
//! The application under faults embeds texts and trains searches over the first of them while the rest is embedded.
//! *Beside* it another trains the same search over the same features, and an *undisturbed* one embeds the same texts
//! into topics of its own and trains over those.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{ensure, Context, Result};
use serde_json::Value;
use sweepstream::config::{GroupProtocol, Settings};

use crate::inflict::{Feeder, Scene};
use crate::inputs::PARTITIONS;
use crate::judge::{self, Complaints, Output};
use crate::schedule::{Step, Target};
use crate::support::{self, committed, create_topics, In};
use crate::table::Table;
use crate::watch::{now_ms, Watch};
use crate::world::{settings, Broker, Workers};

/// Partitions of `trials`: few, so that a restarted broker has them at once.
const TRIAL_PARTITIONS: i32 = 8;
/// Trials of the search file below.
const TRIALS: usize = 2;

/// What a round does.
#[derive(Debug)]
pub struct Plan {
    pub name: String,
    pub protocol: GroupProtocol,
    pub steps: Vec<Step>,
    /// Inputs that trials read.
    pub first_inputs: usize,
    /// All inputs, at least.
    pub inputs: usize,
    /// How often the same search is started under faults.
    pub searches: usize,
    /// Epochs of each trial.
    pub epochs: usize,
}

/// What was judged.
#[derive(Debug, Default)]
pub struct Judged {
    pub inputs: usize,
    pub trials: usize,
    pub complaints: Complaints,
}

/// Plays a round on a broker.
pub fn play(plan: &Plan, broker: &mut Broker, folder: &Path, table: &Mutex<Table>) -> Result<Judged> {
    let began = Instant::now();
    let say = |what: &str| println!("[{} {:>5.1} s] {what}", plan.name, began.elapsed().as_secs_f64());
    let declarations = declare(folder)?;
    let application = |name: &str| settings(broker, &format!("{}-{name}", plan.name), plan.protocol, &declarations);
    let mut disturbed = application("disturbed");
    // Many small transactions, so that faults find one under way.
    disturbed.embed.chunk_texts = std::num::NonZeroUsize::new(4).unwrap();
    disturbed.embed.sessions = std::num::NonZeroUsize::new(1);
    disturbed.embed.threads = std::num::NonZeroUsize::new(1);
    let undisturbed = application("undisturbed");
    let mut beside = application("beside");
    beside.topics = sweepstream::config::Topics {
        trials: beside.topics.trials,
        output: beside.topics.output,
        ..disturbed.topics.clone()
    };
    // The two share topics, so one after the other.
    std::thread::scope(|scope| {
        let _ = scope.spawn(|| create_topics(&undisturbed));
        create_topics(&disturbed);
        create_topics(&beside);
    });
    let search = folder.join("search.toml");
    std::fs::write(&search, search_file(plan.epochs))?;

    let trials = plan.searches * TRIALS;
    let watch = Watch::start(&disturbed, trials);
    let feeder = Feeder::new(&disturbed);
    let mut workers = Target::ALL.map(|target| Workers::new(target, &disturbed, folder));
    feeder.feed(plan.first_inputs);
    workers[0].start()?;
    workers[0].until("the first texts are embedded", |_| watch.verdicts() >= plan.first_inputs)?;
    let starts = vec![&disturbed; plan.searches].into_iter().chain([&beside]);
    start_searches(starts, &search)?;
    workers[1].start()?;
    say(&format!("{} texts are embedded, {trials} trials begin", plan.first_inputs));

    let burst = plan.inputs.saturating_sub(plan.first_inputs).div_ceil(plan.steps.len().max(1));
    for (number, step) in plan.steps.iter().enumerate() {
        let names: Vec<String> = step.events.iter().map(|event| event.fault.name()).collect();
        let open = watch.open_trials();
        say(&format!("step {}/{}, {open} trials open: {}", number + 1, plan.steps.len(), names.join(" + ")));
        let mut scene = Scene { watch: &watch, feeder: &feeder, workers: &mut workers, broker: &mut *broker };
        scene.play(step, burst, &mut table.lock().unwrap())?;
    }
    say("faults are over");
    workers[0].until("the last texts are embedded", |_| watch.verdicts() >= feeder.fed())?;
    while watch.open_trials() > 0 {
        let since_ms = now_ms();
        workers[1].until("the last trials do not go on", |_| watch.moved(Target::Train, since_ms))?;
    }
    for workers in &mut workers {
        workers.stop()?;
        for (&code, &count) in &workers.gave_up {
            *table.lock().unwrap().gave_up.entry(code).or_default() += count;
        }
    }
    say("all texts are embedded, all trials have ended; now undisturbed");
    leave_in_peace(&undisturbed, &beside, &feeder, plan, folder, &search)?;
    say("judging");
    let complaints = judge_all(&disturbed, &undisturbed, &beside, &feeder, trials)?;
    say("judged");
    Ok(Judged { inputs: feeder.fed(), trials, complaints })
}

/// Topics as they ship, with fewer partitions.
fn declare(folder: &Path) -> Result<std::path::PathBuf> {
    let declarations = folder.join("topics");
    std::fs::create_dir_all(&declarations)?;
    for (topic, partitions, policy) in [("texts", PARTITIONS, "delete"), ("trials", TRIAL_PARTITIONS, "compact")] {
        let text = format!(
            "partitions = {partitions}\nreplication_factor = -1\n[required]\n\"cleanup.policy\" = \
             {{ value = \"{policy}\", why = \"as shipped\" }}\n"
        );
        std::fs::write(declarations.join(format!("{topic}.toml")), text)?;
    }
    Ok(declarations)
}

/// Small models with steps that take no time, so that most of a trial is checkpoints.
fn search_file(epochs: usize) -> String {
    format!(
        r#"
name = "f"
seed = 7
epochs = {epochs}
validation = 5
window = 40
batch_size = 16
checkpoint_every = 3
rows_max = 2
dropout = 0.1
[[trial]]
model = "mlp"
hidden = 3
[[trial]]
model = "autoencoder"
layers = [3]
"#
    )
}

/// Starts the search side by side, so that all see the same range.
fn start_searches<'s>(starts: impl Iterator<Item = &'s Settings>, search: &Path) -> Result<()> {
    let file = search.to_str().context("a path that is no text")?;
    std::thread::scope(|scope| {
        let start = |settings| scope.spawn(move || support::sweepstream(settings, &["search", "start", file]));
        let started: Vec<_> = starts.map(start).collect();
        for start in started {
            let finished = start.join().map_err(|_| anyhow::anyhow!("starting a search"))?;
            ensure!(finished.code == 0, "starting a search: {}", finished.stderr);
        }
        Ok(())
    })
}

/// The same texts and the same search without any fault.
fn leave_in_peace(
    undisturbed: &Settings,
    beside: &Settings,
    feeder: &Feeder,
    plan: &Plan,
    folder: &Path,
    search: &Path,
) -> Result<()> {
    let inputs: Vec<support::Out> = feeder.inputs().into_iter().map(|input| input.out).collect();
    let watch = Watch::start(undisturbed, TRIALS);
    let watch_beside = Watch::start(beside, TRIALS);
    let mut embed = Workers::new(Target::Embed, undisturbed, folder);
    let mut trainers = [undisturbed, beside].map(|settings| Workers::new(Target::Train, settings, folder));
    trainers[1].start()?;
    let (first, rest) = inputs.split_at(plan.first_inputs);
    support::produce(undisturbed, &undisturbed.topics.texts, first);
    embed.start()?;
    embed.until("the first texts are embedded", |_| watch.verdicts() >= first.len())?;
    start_searches([undisturbed].into_iter(), search)?;
    trainers[0].start()?;
    support::produce(undisturbed, &undisturbed.topics.texts, rest);
    embed.until("all texts are embedded", |_| watch.verdicts() >= inputs.len())?;
    trainers[0].until("all trials end", |_| watch.open_trials() == 0)?;
    trainers[1].until("all trials end", |_| watch_beside.open_trials() == 0)?;
    let [mut first, mut second] = trainers;
    for workers in [&mut embed, &mut first, &mut second] {
        workers.stop()?;
        ensure!(workers.gave_up.is_empty(), "a process that nobody disturbed ended by itself");
    }
    Ok(())
}

/// Compares what both have left in their topics.
fn judge_all(
    disturbed: &Settings,
    undisturbed: &Settings,
    beside: &Settings,
    feeder: &Feeder,
    trials: usize,
) -> Result<Complaints> {
    let inputs = feeder.inputs();
    let (mine, other) = (&disturbed.topics, &undisturbed.topics);
    let wanted = [&mine.texts, &mine.features, &mine.dead_letters, &other.features, &other.dead_letters];
    // Side by side: each new reader takes a while to begin.
    let [texts, features, dead, other_features, other_dead] = std::thread::scope(|scope| {
        wanted.map(|topic| scope.spawn(move || judge::read(disturbed, topic))).map(|reader| reader.join().unwrap())
    });
    let mut complaints = judge::verdicts(&inputs, &texts, &features, &dead);
    complaints.extend(judge::same_bytes("features", &features, &other_features));
    complaints.extend(judge::same_bytes("dead-letters", &dead, &other_dead));
    let group = disturbed.embed_group();
    let ends = |records: &[In]| -> BTreeMap<i32, i64> {
        records.iter().map(|record| (record.partition, record.offset + 1)).collect()
    };
    let position = committed(disturbed, &group, &mine.texts);
    complaints.extend(judge::positions(&group, &position, &ends(&texts)));

    let [(under_faults, more), same_features, own_features] = std::thread::scope(|scope| {
        [disturbed, beside, undisturbed]
            .map(|settings| scope.spawn(move || read_results(settings)))
            .map(|reader| reader.join().unwrap())
    });
    complaints.extend(more);
    ensure!(under_faults.len() == trials || !complaints.is_empty(), "{} of {trials} trials", under_faults.len());
    for ((calm, more), against) in [
        (same_features, "a run over the same features"),
        (own_features, "a run over features that were embedded undisturbed"),
    ] {
        complaints.extend(more);
        for trial in &under_faults {
            let other = calm.iter().find(|other| other.number == trial.number);
            let (Some(found), Some(wanted)) = (&trial.result, other.and_then(|other| other.result.as_ref())) else {
                complaints.push(format!("trial {} has nothing to be compared with", trial.id));
                continue;
            };
            complaints.extend(judge::same_result(&trial.id, found, wanted, against));
        }
    }
    Ok(complaints)
}

/// What an application's trials came to.
fn read_results(settings: &Settings) -> (Vec<Trial>, Complaints) {
    let records = judge::read(settings, &settings.topics.output);
    let (output, mut complaints, mut found) = (Output::new(&records), Complaints::new(), Vec::new());
    for trial in trials_of(settings) {
        let position = committed(settings, &settings.trial_group(&trial.id), &settings.topics.features);
        complaints.extend(judge::positions(&settings.trial_group(&trial.id), &position, &trial.ends));
        match output.result(&trial.id) {
            Ok(result) => found.push(Trial { result: Some(result), ..trial }),
            Err(complaint) => complaints.push(complaint),
        }
    }
    (found, complaints)
}

/// A trial as its record has it.
struct Trial {
    id: String,
    number: u64,
    /// Partition → end of its range.
    ends: BTreeMap<i32, i64>,
    result: Option<judge::Result>,
}

fn trials_of(settings: &Settings) -> Vec<Trial> {
    let records = judge::read(settings, &settings.topics.trials);
    let newest: BTreeMap<String, Value> =
        records.iter().filter(|record| record.value.is_some()).map(|record| (record.key(), record.json())).collect();
    let end = |(partition, range): (&String, &Value)| Some((partition.parse().ok()?, range[1].as_i64()?));
    newest
        .into_iter()
        .map(|(id, record)| Trial {
            id,
            number: record["number"].as_u64().unwrap_or(u64::MAX),
            ends: record["range"].as_object().into_iter().flatten().filter_map(end).collect(),
            result: None,
        })
        .collect()
}
