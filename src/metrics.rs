//! All Prometheus handles, one struct for each stage. Help texts are what `/metrics` and docs/metrics.md show.

use std::cell::RefCell;
use std::sync::LazyLock;

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    exponential_buckets, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry,
};

/// A name was registered twice or is not a valid one.
pub type Error = prometheus::Error;

/// Log lines that standard error did not take. Of the process, not of [`Metrics`]: logging begins before those.
pub static LOG_LINES_DROPPED: LazyLock<IntCounter> = LazyLock::new(|| {
    let help = "Lines that standard error did not take: its disk is full, or its reader is gone.";
    IntCounter::new("sweepstream_log_lines_dropped_total", help).expect("the name is one that Prometheus takes")
});

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionOutcome {
    /// Everything became visible.
    Committed,
    /// Taken back; tried again.
    Aborted,
    /// The group or a newer producer had moved on.
    Fenced,
    /// The producer died and was built anew.
    Failed,
}

impl TransactionOutcome {
    /// All, as labels.
    pub const ALL: [Self; 4] = [Self::Committed, Self::Aborted, Self::Fenced, Self::Failed];

    pub fn label(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Aborted => "aborted",
            Self::Fenced => "fenced",
            Self::Failed => "failed",
        }
    }
}

/// Transactions of a stage.
#[derive(Clone, Debug)]
pub struct Transactions {
    outcomes: IntCounterVec,
    /// Time of a transaction.
    pub duration: Histogram,
}

impl Transactions {
    /// Every series exists from the start.
    fn new(outcomes: IntCounterVec, duration: Histogram) -> Self {
        for outcome in TransactionOutcome::ALL {
            outcomes.with_label_values(&[outcome.label()]).reset();
        }
        Self { outcomes, duration }
    }

    pub fn count(&self, outcome: TransactionOutcome) {
        self.outcomes.with_label_values(&[outcome.label()]).inc();
    }

    /// How many ended so.
    pub fn counted(&self, outcome: TransactionOutcome) -> u64 {
        self.outcomes.with_label_values(&[outcome.label()]).get()
    }
}

/// Metrics of a process.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub registry: Registry,
    /// Of both stages alike.
    pub stages: Stages,
    /// Of the embed stage.
    pub embed: Embed,
    /// Of the train stage.
    pub train: Train,
}

/// What a metric is, for docs/metrics.md.
#[derive(Clone, Debug)]
pub struct Described {
    /// As in `/metrics`; a histogram has the suffixes `_bucket`, `_sum` and `_count`.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Names of its labels.
    pub labels: Vec<String>,
    /// What it counts.
    pub help: String,
}

/// Metrics of each stage, with the stage as a label.
#[derive(Clone, Debug)]
pub struct Stages {
    /// 1 while the stage is at work, 0 while it waits for Kafka or an assignment.
    pub ready: IntGaugeVec,
    /// Times the stage failed and was built anew.
    pub rebuilds: IntCounterVec,
}

/// Metrics of the embed stage.
#[derive(Clone, Debug)]
pub struct Embed {
    /// Records read from `texts`.
    pub records: IntCounter,
    /// Matrices committed to `features`.
    pub features: IntCounter,
    /// Dead letters committed, by reason.
    pub dead_letters: IntCounterVec,
    /// Texts of which tokens were cut off.
    pub truncated: IntCounter,
    /// Tokens of an inference call, padding included.
    pub batch_tokens: Histogram,
    /// Share of padding in the tokens of the last chunk.
    pub padding_ratio: Gauge,
    /// Time of an inference call.
    pub inference_duration: Histogram,
    pub transactions: Transactions,
    /// From the input record's timestamp to its commit.
    pub latency: Histogram,
    /// Lag of the embed group.
    pub lag: IntGaugeVec,
    /// Rebalances of the embed group that reached this process.
    pub rebalances: IntCounter,
}

/// Metrics of the train stage.
#[derive(Clone, Debug)]
pub struct Train {
    /// Trials known to this process, by state.
    pub trials: IntGaugeVec,
    /// Epochs finished.
    pub epochs: IntCounter,
    /// Optimizer updates.
    pub steps: IntCounter,
    /// Records replayed.
    pub records: IntCounter,
    /// Records read from the features topic, once for all trials that follow a stream.
    pub records_read: IntCounter,
    /// Streams that trials follow.
    pub streams: IntGauge,
    /// Bytes of means that are held.
    pub view_bytes: IntGauge,
    /// Records replayed in the last second, all trials together.
    pub records_per_second: Gauge,
    /// Bytes of checkpoints committed.
    pub checkpoint_bytes: IntCounter,
    /// Checkpoints that could not be used.
    pub checkpoints_damaged: IntCounter,
    /// Time of an epoch.
    pub epoch_duration: Histogram,
    pub transactions: Transactions,
    /// Rebalances of the train group that reached this process.
    pub rebalances: IntCounter,
    /// Epoch that a running trial is in.
    pub trial_epoch: IntGaugeVec,
    /// Optimizer updates of a running trial so far.
    pub trial_step: IntGaugeVec,
    /// Records of its range that a running trial has still to read in this epoch.
    pub trial_lag: IntGaugeVec,
    /// Last training loss of a running trial.
    pub trial_loss: GaugeVec,
}

impl Metrics {
    /// Registers everything on a registry of its own.
    ///
    /// # Errors
    /// When two metrics share a name: a mistake in this file.
    pub fn new() -> Result<Self, Error> {
        Ok(Self::described()?.0)
    }

    /// [`Metrics::new`], and what each of them is.
    ///
    /// # Errors
    /// As [`Metrics::new`].
    pub fn described() -> Result<(Self, Vec<Described>), Error> {
        let registrar = Registrar { registry: Registry::new(), described: RefCell::default() };
        let stages = Stages::register(&registrar)?;
        let embed = Embed::register(&registrar)?;
        let train = Train::register(&registrar)?;
        registrar
            .gauges("build_info", "Always 1; the version is a label.", &["version"])?
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        let _ = registrar.add("counter", LOG_LINES_DROPPED.clone())?;
        registrar.process()?;
        let Registrar { registry, described } = registrar;
        Ok((Self { registry, stages, embed, train }, described.into_inner()))
    }

    /// Everything in Prometheus' text format.
    ///
    /// # Errors
    /// When a metric cannot be written as text.
    pub fn text(&self) -> Result<String, Error> {
        prometheus::TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

impl Stages {
    fn register(r: &Registrar) -> Result<Self, Error> {
        Ok(Self {
            ready: r.gauges(
                "stage_ready",
                "1 while a stage of this process is at work, 0 while it waits for Kafka or for an assignment.",
                &["stage"],
            )?,
            rebuilds: r.counters("stage_rebuilds_total", "Times a stage failed and was built anew.", "stage")?,
        })
    }
}

impl Embed {
    fn register(r: &Registrar) -> Result<Self, Error> {
        Ok(Self {
            records: r.counter("embed_records_total", "Records read from the texts topic.")?,
            features: r.counter("features_records_total", "Matrices committed to the features topic.")?,
            dead_letters: r.counters("dead_letters_total", "Dead letters committed, by reason.", "reason")?,
            truncated: r.counter("embed_truncated_total", "Texts of which tokens beyond max_length were cut off.")?,
            batch_tokens: r.histogram(
                "embed_batch_tokens",
                "Tokens of an inference call, padding included.",
                exponential_buckets(16.0, 2.0, 10)?,
            )?,
            padding_ratio: r.gauge("embed_padding_ratio", "Share of padding in the tokens of the last chunk.")?,
            inference_duration: r.seconds("embed_inference_duration_seconds", "Time of an inference call.")?,
            transactions: r.transactions(
                ("features_transaction_duration_seconds", "Time of a transaction of the embed stage."),
                ("features_transactions_total", "Transactions of the embed stage, by outcome."),
            )?,
            latency: r
                .seconds("embed_latency_seconds", "From the input record's timestamp to the commit of its verdict.")?,
            lag: r.gauges(
                "consumer_lag_records",
                "Last stable offset less committed offset, of partitions this process owns.",
                &["topic", "partition"],
            )?,
            rebalances: r
                .counter("embed_rebalances_total", "Rebalances of the embed group that reached this process.")?,
        })
    }
}

impl Train {
    fn register(r: &Registrar) -> Result<Self, Error> {
        Ok(Self {
            trials: r.gauges("trials", "Trials in the partitions this process owns, by state.", &["state"])?,
            epochs: r.counter("trial_epochs_total", "Epochs finished, all trials together.")?,
            steps: r.counter("trial_steps_total", "Optimizer updates, all trials together.")?,
            records: r.counter("trial_records_total", "Records replayed, all trials together.")?,
            records_read: r.counter(
                "replay_records_total",
                "Records read from the features topic for trials; trials that share a stream, or means that are held, \
                 read a record once.",
            )?,
            streams: r.int_gauge("replay_streams", "Streams that trials follow.")?,
            view_bytes: r.int_gauge(
                "replay_view_bytes",
                "Bytes of means that are held, or have room set aside, for trials that read nothing else.",
            )?,
            records_per_second: r
                .gauge("trial_records_per_second", "Records replayed in the last second, all trials together.")?,
            checkpoint_bytes: r.counter("checkpoint_bytes_total", "Bytes of checkpoints committed.")?,
            checkpoints_damaged: r.counter(
                "checkpoints_damaged_total",
                "Checkpoints found damaged when a trial was taken over; the one before was used.",
            )?,
            epoch_duration: r.seconds("trial_epoch_duration_seconds", "Time of an epoch of a trial.")?,
            transactions: r.transactions(
                ("output_transaction_duration_seconds", "Time of a checkpoint's transaction."),
                ("output_transactions_total", "Checkpoint transactions, by outcome."),
            )?,
            rebalances: r
                .counter("train_rebalances_total", "Rebalances of the train group that reached this process.")?,
            trial_epoch: r.gauges("trial_epoch", "Epoch that a running trial is in, from 0.", &["trial"])?,
            trial_step: r.gauges("trial_step", "Optimizer updates of a running trial so far.", &["trial"])?,
            trial_lag: r.gauges(
                "trial_lag_records",
                "Records of its range that a running trial has still to read in this epoch.",
                &["trial"],
            )?,
            trial_loss: r.add(
                "gauge",
                GaugeVec::new(
                    Opts::new("sweepstream_trial_loss", "Training loss of a running trial's last step."),
                    &["trial"],
                )?,
            )?,
        })
    }

    /// Ends the series of a trial.
    pub fn forget(&self, trial: &str) {
        // Absent series are fine: the trial may have ended before its first step.
        drop(self.trial_epoch.remove_label_values(&[trial]));
        drop(self.trial_step.remove_label_values(&[trial]));
        drop(self.trial_lag.remove_label_values(&[trial]));
        drop(self.trial_loss.remove_label_values(&[trial]));
    }
}

struct Registrar {
    registry: Registry,
    described: RefCell<Vec<Described>>,
}

impl Registrar {
    fn add<C: Collector + Clone + 'static>(&self, kind: &'static str, collector: C) -> Result<C, Error> {
        self.registry.register(Box::new(collector.clone()))?;
        self.describe(&collector, |_| kind);
        Ok(collector)
    }

    fn describe(&self, collector: &impl Collector, kind: impl Fn(&str) -> &'static str) {
        self.described.borrow_mut().extend(collector.desc().into_iter().map(|desc| Described {
            name: desc.fq_name.clone(),
            kind: kind(&desc.fq_name),
            labels: desc.variable_labels.clone(),
            help: desc.help.clone(),
        }));
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, Error> {
        self.add("counter", IntCounter::new(format!("sweepstream_{name}"), help)?)
    }

    fn counters(&self, name: &str, help: &str, label: &str) -> Result<IntCounterVec, Error> {
        self.add("counter", IntCounterVec::new(Opts::new(format!("sweepstream_{name}"), help), &[label])?)
    }

    /// Time first, as it is described first.
    fn transactions(&self, duration: (&str, &str), outcomes: (&str, &str)) -> Result<Transactions, Error> {
        let duration = self.seconds(duration.0, duration.1)?;
        Ok(Transactions::new(self.counters(outcomes.0, outcomes.1, "outcome")?, duration))
    }

    fn gauge(&self, name: &str, help: &str) -> Result<Gauge, Error> {
        self.add("gauge", Gauge::new(format!("sweepstream_{name}"), help)?)
    }

    fn int_gauge(&self, name: &str, help: &str) -> Result<IntGauge, Error> {
        self.add("gauge", IntGauge::new(format!("sweepstream_{name}"), help)?)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, Error> {
        self.add("gauge", IntGaugeVec::new(Opts::new(format!("sweepstream_{name}"), help), labels)?)
    }

    fn histogram(&self, name: &str, help: &str, buckets: Vec<f64>) -> Result<Histogram, Error> {
        let opts = HistogramOpts::new(format!("sweepstream_{name}"), help).buckets(buckets);
        self.add("histogram", Histogram::with_opts(opts)?)
    }

    /// Memory, CPU and descriptors of this process, under the names that all Prometheus clients use.
    fn process(&self) -> Result<(), Error> {
        let process = ProcessCollector::for_self();
        self.describe(&process, |name| if name.ends_with("_total") { "counter" } else { "gauge" });
        self.registry.register(Box::new(process))
    }

    /// From a millisecond to about a minute.
    fn seconds(&self, name: &str, help: &str) -> Result<Histogram, Error> {
        self.histogram(name, help, exponential_buckets(0.001, 2.0, 17)?)
    }
}

/// Sets an unsigned count on a signed gauge.
pub fn set(gauge: &IntGauge, value: usize) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}
