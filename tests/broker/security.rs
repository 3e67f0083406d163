//! A cluster behind TLS and passwords: the right ones lead everywhere, wrong ones end the start with their cause, and
//! nobody ever reads them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sweepstream::config::Settings;
use sweepstream::kafka::local::{LocalBroker, LocalBrokerOptions};
use sweepstream::kafka::ports;

use crate::support::{
    assert_one_verdict_each, command, committed, create_topics, eventually, finish, get, parts, produce, sentences,
    settings, Finished, Out, Process, Progress,
};

const PASSWORD: &str = "open-5esame";
const WRONG: &str = "open-barley";

/// A broker whose second listener wants TLS and SCRAM.
struct Secured {
    broker: LocalBroker,
    jars: PathBuf,
    servers: String,
    certificate: PathBuf,
    folder: tempfile::TempDir,
}

#[track_caller]
fn succeeds(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// A key of its own for 127.0.0.1, and its certificate.
fn key(folder: &Path, name: &str) -> (PathBuf, PathBuf) {
    let (store, certificate) = (folder.join(format!("{name}.p12")), folder.join(format!("{name}.pem")));
    let keytool = |arguments: &[&str]| {
        let mut command = Command::new("keytool");
        let _ = command.args(arguments).args(["-alias", "broker", "-storetype", "PKCS12", "-storepass", "keystore"]);
        let _ = command.arg("-keystore").arg(&store);
        command
    };
    let make = ["-genkeypair", "-keyalg", "RSA", "-dname", "CN=test", "-ext", "SAN=IP:127.0.0.1", "-validity", "2"];
    succeeds(&mut keytool(&make));
    succeeds(keytool(&["-exportcert", "-rfc"]).arg("-file").arg(&certificate));
    (store, certificate)
}

impl Secured {
    /// What no list of rights names is open to everyone, or to nobody.
    fn start(everyone: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (store, certificate) = key(folder.path(), "broker");
        let [plain, secure, controller] = ports::free().unwrap();
        let listeners = format!("PLAINTEXT://127.0.0.1:{plain},SECURE://127.0.0.1:{secure}");
        let data = folder.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let properties: Vec<(String, String)> = [
            ("listeners", format!("{listeners},CONTROLLER://127.0.0.1:{controller}")),
            ("advertised.listeners", listeners),
            ("controller.quorum.voters", format!("1@127.0.0.1:{controller}")),
            ("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,SECURE:SASL_SSL,CONTROLLER:PLAINTEXT".into()),
            ("sasl.enabled.mechanisms", "SCRAM-SHA-512".into()),
            (
                "listener.name.secure.scram-sha-512.sasl.jaas.config",
                "org.apache.kafka.common.security.scram.ScramLoginModule required;".into(),
            ),
            ("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer".into()),
            ("super.users", "User:ANONYMOUS".into()),
            ("allow.everyone.if.no.acl.found", everyone.to_string()),
            ("listener.name.secure.ssl.keystore.type", "PKCS12".into()),
            ("listener.name.secure.ssl.keystore.location", store.display().to_string()),
            ("listener.name.secure.ssl.keystore.password", "keystore".into()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec();
        let parts = parts();
        let kafka = parts.kafka().expect("make parts");
        let jars = kafka.join("kafka/*");
        add_user(&jars, folder.path(), &data, controller);
        let options = LocalBrokerOptions { data: Some(data), port: Some(plain), properties };
        let broker = LocalBroker::start(kafka, &options).expect("the broker starts");
        Self { broker, jars, servers: format!("127.0.0.1:{secure}"), certificate, folder }
    }

    fn settings(&self, name: &str) -> Settings {
        let mut settings = settings(name);
        settings.kafka.bootstrap_servers.clone_from(&self.servers);
        settings
    }

    /// Adds or removes what users may do.
    fn acl(&self, arguments: &[&str]) {
        let mut tool = Command::new("java");
        let _ = tool.arg("-cp").arg(&self.jars).arg("org.apache.kafka.tools.AclCommand");
        let _ = tool.args(["--bootstrap-server", self.broker.bootstrap_servers()]);
        succeeds(tool.args(arguments));
    }

    /// The program with what it needs to be let in.
    fn command(&self, settings: &Settings, arguments: &[&str]) -> Command {
        let mut command = command(settings, arguments);
        let _ = command
            .env("SWEEPSTREAM_KAFKA__PROPERTIES__SECURITY_PROTOCOL", "SASL_SSL")
            .env("SWEEPSTREAM_KAFKA__PROPERTIES__SASL_MECHANISM", "SCRAM-SHA-512")
            .env("SWEEPSTREAM_KAFKA__PROPERTIES__SASL_USERNAME", "ali")
            .env("SWEEPSTREAM_KAFKA__PROPERTIES__SASL_PASSWORD", PASSWORD)
            .env("SWEEPSTREAM_KAFKA__PROPERTIES__SSL_CA_LOCATION", &self.certificate)
            .env("SWEEPSTREAM_KAFKA__START_TIMEOUT", "5s")
            .env("SWEEPSTREAM_LOG__LEVEL", "debug,rdkafka=debug,librdkafka=debug")
            .env("SWEEPSTREAM_HTTP__ADDRESS", "127.0.0.1:0")
            .env("SWEEPSTREAM_EMBED__SESSIONS", "1");
        command
    }
}

/// Formats the data folder with a user in it.
fn add_user(jars: &Path, folder: &Path, data: &Path, controller: u16) {
    let properties = folder.join("format.properties");
    let text = format!(
        "process.roles=broker,controller\nnode.id=1\ncontroller.listener.names=CONTROLLER\nlog.dirs={}\n\
         listeners=CONTROLLER://127.0.0.1:{controller},PLAINTEXT://127.0.0.1:0\n\
         controller.quorum.voters=1@127.0.0.1:{controller}\n",
        data.display()
    );
    std::fs::write(&properties, text).unwrap();
    let user = format!("SCRAM-SHA-512=[name=ali,password={PASSWORD}]");
    let mut format = Command::new("java");
    let _ = format.arg("-cp").arg(jars).args(["kafka.tools.StorageTool", "format", "-t"]);
    succeeds(format.args(["sweepstream-secure-AAA", "--add-scram", &user, "-c"]).arg(&properties));
}

#[track_caller]
fn assert_hidden(what: &str, texts: &[&str]) {
    for text in texts {
        assert!(!text.contains(PASSWORD) && !text.contains(WRONG), "{what} shows a password: {text}");
    }
}

#[test]
fn tls_and_passwords() {
    let secured = Secured::start(true);
    the_right_ones_lead_everywhere(&secured, &secured.settings("secured"));
    wrong_ones_end_the_start_with_their_cause(&secured);
    dead_letters_that_may_not_be_written_stop_the_stage(&secured);
}

/// What docs/operations.md tells an administrator to grant, to a user who may do nothing else.
#[test]
fn the_rights_in_the_documents_are_enough() {
    let secured = Secured::start(false);
    // Names are those of the document: the defaults.
    let mut settings = Settings::default();
    settings.kafka.bootstrap_servers.clone_from(&secured.servers);
    let document = include_str!("../../docs/operations.md");
    let mut granted = 0;
    for line in document.lines().filter_map(|line| line.strip_prefix("acls --")) {
        let line = format!("--{}", line.split('#').next().unwrap());
        let arguments: Vec<&str> = line.split_whitespace().collect();
        secured.acl(&[&["--add", "--allow-principal", "User:ali"], arguments.as_slice()].concat());
        granted += 1;
    }
    assert_eq!(granted, 4);
    the_right_ones_lead_everywhere(&secured, &settings);
}

fn the_right_ones_lead_everywhere(secured: &Secured, settings: &Settings) {
    let run = |arguments: &[&str]| {
        let finished = finish(secured.command(settings, arguments));
        assert_hidden(&format!("{arguments:?}"), &[&finished.stdout, &finished.stderr]);
        assert_eq!(finished.code, 0, "{arguments:?}: {}", finished.stderr);
        finished.stdout
    };
    let texts: Vec<String> =
        sentences(24).iter().map(|text| String::from_utf8(text.value.clone().unwrap()).unwrap()).collect();
    let (texts_file, search_file) = (secured.folder.path().join("texts"), secured.folder.path().join("search.toml"));
    std::fs::write(&texts_file, texts.join("\n")).unwrap();
    std::fs::write(&search_file, "name = \"s\"\nmodel = \"autoencoder\"\nlayers = [4]\nepochs = 1\n").unwrap();

    let _ = run(&["topics", "create"]);
    let _ = run(&["produce", texts_file.to_str().unwrap()]);
    let mut process = Process::spawn(secured.command(settings, &["run"]));
    let address = process.http_address();
    let metrics = || get(&address, "/metrics").1;
    eventually("texts are embedded", || metrics().contains("sweepstream_features_records_total 24\n"));
    let id = run(&["search", "start", search_file.to_str().unwrap()]).trim().to_owned();
    let _ = run(&["search", "wait", &id]);
    assert!(run(&["trials", "list"]).contains(&format!("{id}-00")));
    let _ = run(&["search", "show", &id]);
    let weights = secured.folder.path().join("weights.safetensors");
    let _ = run(&["checkpoint", "export", &format!("{id}-00"), weights.to_str().unwrap()]);
    let shown = run(&["config"]);
    assert!(shown.contains("(redacted)") && shown.contains("\"sasl.username\" = \"ali\""), "{shown}");
    assert_hidden("the endpoint", &[&metrics(), &get(&address, "/api/trials").1, &get(&address, "/health/ready").1]);
    let _ = run(&["search", "delete", &id]);
    process.signal("TERM");
    assert_eq!(process.wait().code(), Some(0));
    let log = process.stderr();
    assert!(log.contains("DEBUG"), "{log}");
    assert_hidden("the log", &[&log]);

    let file = secured.folder.path().join("password");
    std::fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    let mut from_file = secured.command(settings, &["topics", "verify"]);
    let _ = from_file
        .env_remove("SWEEPSTREAM_KAFKA__PROPERTIES__SASL_PASSWORD")
        .env("SWEEPSTREAM_KAFKA__PROPERTIES__SASL_PASSWORD_FILE", &file);
    let verified = finish(from_file);
    assert_eq!(verified.code, 0, "{}", verified.stderr);
}

fn wrong_ones_end_the_start_with_their_cause(secured: &Secured) {
    let settings = secured.settings("locked-out");
    let with = |arguments: &[&str], changes: &[(&str, &str)]| -> Finished {
        let mut command = secured.command(&settings, arguments);
        for (property, value) in changes {
            let _ = command.env(format!("SWEEPSTREAM_KAFKA__PROPERTIES__{property}"), value);
        }
        finish(command)
    };
    let (_, other) = key(secured.folder.path(), "other");
    let other = other.to_str().unwrap();
    let at = secured.servers.as_str();
    type Case<'a> = (&'a str, &'a str, i32, &'a [&'a str]);
    let cases: [Case<'_>; 8] = [
        ("SASL_PASSWORD", WRONG, 78, &[at, "invalid credentials", "kafka.properties"]),
        ("SASL_MECHANISM", "PLAIN", 78, &[at, "SCRAM-SHA-512", "kafka.properties"]),
        ("SSL_CA_LOCATION", other, 78, &[at, "certificate verify failed", "kafka.properties"]),
        ("SSL_CA_LOCATION", "/nowhere/ca.pem", 78, &["ssl.ca.location"]),
        ("SECURITY_PROTOCOL", "SASL_PLAINTEXT", 69, &[at, "security.protocol"]),
        ("SECURITY_PROTOCOL", "PLAINTEXT", 69, &[at, "security.protocol"]),
        ("SECURITY_PROTOCOL", "SASL_SLS", 78, &["SASL_SLS", "security.protocol"]),
        // Misspelt, and a password all the same.
        ("SASL_PASSWRD", WRONG, 78, &["sasl.passwrd"]),
    ];
    let refused = |(property, value, code, named): &Case<'_>, arguments: &[&str]| {
        let finished = with(arguments, &[(property, value)]);
        assert_eq!(finished.code, *code, "{property}={value}: {}", finished.stderr);
        let last = finished.stderr.lines().last().unwrap();
        for name in *named {
            assert!(last.contains(name), "{property}={value}: {name} is not in: {last}");
        }
        assert_hidden(property, &[&finished.stdout, &finished.stderr]);
    };
    // Side by side: most wait until the bounded wait for the cluster is over.
    std::thread::scope(|scope| {
        for case in &cases {
            drop(scope.spawn(|| refused(case, &["topics", "verify"])));
        }
        drop(scope.spawn(|| refused(&cases[0], &["run", "--stage=train"])));
    });
    let shown = with(&["config"], &[("SASL_PASSWRD", WRONG)]);
    assert!(shown.stdout.contains("sasl.passwrd"), "{}", shown.stdout);
    assert_hidden("config", &[&shown.stdout]);
}

fn dead_letters_that_may_not_be_written_stop_the_stage(secured: &Secured) {
    let settings = secured.settings("forbidden");
    // Tests look from the other listener.
    let mut plain = settings.clone();
    plain.kafka.bootstrap_servers = secured.broker.bootstrap_servers().to_owned();
    create_topics(&plain);
    let (texts, dead) = (&settings.topics.texts, &settings.topics.dead_letters);
    let start = || {
        let mut command = secured.command(&settings, &["run", "--stage=embed", "-s", "run.rebuilds_max=1"]);
        let _ = command.env("SWEEPSTREAM_KAFKA__TRANSACTION_TIMEOUT", "2s").env("SWEEPSTREAM_LOG__LEVEL", "info");
        Process::spawn(command)
    };
    let mut process = start();
    produce(&plain, texts, &[Out::text("before", "waves").to(0)]);
    Progress::of(&plain).await_done(1);
    let deny = ["--deny-principal", "User:ali", "--operation", "Write"];
    secured.acl(&["--topic", dead, "--add", "--allow-principal", "User:ali", "--operation", "All"]);
    secured.acl(&[&["--topic", dead, "--add"], deny.as_slice()].concat());
    produce(&plain, texts, &[Out::text("bad", " ").to(0), Out::text("after", "waves").to(0)]);
    let code = process.wait().code();
    let log = process.stderr();
    assert_eq!(code, Some(70), "{log}");
    let last = log.lines().last().unwrap();
    assert!(last.contains(dead.as_str()) && last.contains("authorization failed"), "{last}");
    assert_eq!(committed(&plain, &settings.embed_group(), texts)[&0], 1);

    secured.acl(&[&["--topic", dead, "--remove", "--force"], deny.as_slice()].concat());
    let process = start();
    Progress::of(&plain).await_done(3);
    assert_one_verdict_each(&plain);
    drop(process);
}
