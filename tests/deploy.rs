//! Dockerfile and docker-compose.yml against what they name: files, settings, commands, ports. What comes out of them
//! is tried by deploy/check-container.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};

use serde::Deserialize;
use serde_json::Value;
use sweepstream::config::Settings;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

// --- docker-compose.yml

/// What the tests look at.
#[derive(Deserialize)]
struct Compose {
    services: BTreeMap<String, Service>,
    volumes: BTreeMap<String, Option<Value>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Service {
    image: String,
    build: Option<String>,
    command: Vec<String>,
    environment: BTreeMap<String, Value>,
    ports: Vec<String>,
    volumes: Vec<String>,
    depends_on: BTreeMap<String, Dependency>,
    healthcheck: Option<Value>,
    profiles: Vec<String>,
    container_name: Option<String>,
    read_only: bool,
    cap_drop: Vec<String>,
    security_opt: Vec<String>,
    stop_grace_period: String,
}

#[derive(Deserialize)]
struct Dependency {
    condition: String,
}

fn compose() -> Compose {
    serde_saphyr::from_str(&read("docker-compose.yml")).unwrap_or_else(|error| panic!("docker-compose.yml: {error}"))
}

impl Compose {
    /// The services that run this program.
    fn ours(&self) -> impl Iterator<Item = (&String, &Service)> {
        self.services.iter().filter(|(_, service)| service.build.is_some())
    }
}

impl Service {
    fn variables(&self) -> BTreeMap<String, String> {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        self.environment.iter().map(|(name, value)| (name.clone(), text(value))).collect()
    }
}

// --- Dockerfile

/// `(instruction, arguments)`, lines joined and comments left out.
fn dockerfile() -> Vec<(String, String)> {
    let text = read("Dockerfile");
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let joined = lines.join("\n").replace("\\\n", " ");
    let instructions = joined.lines().filter_map(|line| line.split_once(' '));
    instructions.map(|(name, arguments)| (name.to_owned(), arguments.trim().to_owned())).collect()
}

/// The arguments of an instruction of the final stage.
fn of_image(instruction: &str) -> Vec<String> {
    let all = dockerfile();
    let last = all.iter().rposition(|(name, _)| name == "FROM").unwrap();
    all[last..].iter().filter(|(name, _)| name == instruction).map(|(_, arguments)| arguments.clone()).collect()
}

/// The image's environment.
fn image_environment() -> BTreeMap<String, String> {
    let pairs = of_image("ENV").join(" ");
    pairs.split_whitespace().map(|pair| pair.split_once('=').unwrap()).map(|(k, v)| (k.into(), v.into())).collect()
}

fn exec_form(text: &str) -> Vec<String> {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{text} is not in exec form: {error}"))
}

// --- .dockerignore

/// `*` stands for anything but a slash.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, rest)) => name.strip_prefix(start).is_some_and(|name| {
            let ends = name.char_indices().map(|(end, _)| end).chain([name.len()]);
            ends.take_while(|end| !name[..*end].contains('/')).any(|end| matches(rest, &name[end..]))
        }),
    }
}

/// Whether the build gets to see a file: the last line that matches it, or a folder above it, decides.
fn let_through(path: &str) -> bool {
    let ignore = read(".dockerignore");
    let lines = ignore.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let above: Vec<&str> = Path::new(path).ancestors().filter_map(Path::to_str).collect();
    lines.fold(true, |seen, line| {
        let pattern = line.trim_start_matches('!');
        if above.iter().any(|path| matches(pattern, path)) {
            line.starts_with('!')
        } else {
            seen
        }
    })
}

fn files(folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root().join(folder)).unwrap_or_else(|error| panic!("{folder}: {error}")) {
        let entry = entry.unwrap();
        let path = format!("{folder}/{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

// --- Tests

#[test]
fn images_have_one_version() {
    let compose = compose();
    let ours = format!("sweepstream:{}", env!("CARGO_PKG_VERSION"));
    let mut images: BTreeSet<String> = compose.services.values().map(|service| service.image.clone()).collect();
    images.extend(dockerfile().into_iter().filter(|(name, _)| name == "FROM").map(|(_, arguments)| arguments));
    assert!(images.remove("scratch"), "the final stage starts from nothing");
    for image in images {
        let tag = image.split(' ').next().unwrap().rsplit_once(':').map_or("", |(_, tag)| tag);
        let numbers = tag.trim_start_matches('v').split(['.', '-']).take_while(|part| part.parse::<u32>().is_ok());
        assert_eq!(numbers.count(), 3, "{image} is pinned to no exact version");
    }
    for (name, service) in compose.ours() {
        assert_eq!(service.image, ours, "{name}");
    }
    let label = format!("org.opencontainers.image.version=\"{}\"", env!("CARGO_PKG_VERSION"));
    assert!(of_image("LABEL").iter().any(|labels| labels.contains(&label)), "no label {label}");
    let kafka = compose.services["kafka"].image.rsplit_once(':').unwrap().1;
    assert!(read("parts/pom.xml").contains(&format!("<kafka.version>{kafka}<")), "tests run against another Kafka");
}

#[test]
fn every_service_says_whether_it_is_healthy_before_others_start() {
    let compose = compose();
    assert_eq!(of_image("HEALTHCHECK").len(), 1);
    for (name, service) in &compose.services {
        // Those of a profile are commands that end.
        let asked = service.healthcheck.is_some() || service.build.is_some();
        assert!(asked || !service.profiles.is_empty(), "{name} has no healthcheck");
        for (other, dependency) in &service.depends_on {
            assert!(compose.services.contains_key(other), "{name} depends on {other}");
            assert_eq!(dependency.condition, "service_healthy", "{name} on {other}");
        }
    }
    for (name, service) in compose.ours() {
        assert!(service.depends_on.contains_key("kafka"), "{name}");
    }
}

#[test]
fn mounted_files_exist_and_named_volumes_are_declared_and_used() {
    let compose = compose();
    let mut used = BTreeSet::new();
    for (name, service) in &compose.services {
        for mount in &service.volumes {
            let (source, target) = mount.split_once(':').unwrap();
            if source.starts_with('.') {
                assert!(root().join(source).is_dir(), "{name} mounts {source}, which is not there");
                assert!(target.ends_with(":ro"), "{name} may write to {source}");
            } else {
                assert!(used.insert(source.to_owned()), "{name} shares {source} with another");
            }
        }
    }
    let declared: BTreeSet<String> = compose.volumes.keys().cloned().collect();
    assert_eq!(used, declared);
}

#[test]
fn variables_are_settings_and_their_topics_are_declared() {
    let image = image_environment();
    for (name, service) in compose().ours() {
        let environment = image.clone().into_iter().chain(service.variables());
        let settings = Settings::layered(None, environment, &[]).unwrap_or_else(|error| panic!("{name}: {error}"));
        for (_, topic) in settings.topics.names() {
            assert!(root().join(format!("topics/{topic}.toml")).exists(), "{name}: {topic}");
        }
        let grace = humantime_serde::re::humantime::parse_duration(&service.stop_grace_period).unwrap();
        assert!(grace > settings.run.drain_timeout, "{name} is killed while it drains");
    }
}

#[test]
fn the_brokers_addresses_are_those_that_clients_use() {
    let compose = compose();
    let kafka = &compose.services["kafka"];
    let variables = kafka.variables();
    let listeners = |variable: &str| -> BTreeMap<String, String> {
        let pairs = variables[variable].split(',').map(|listener| listener.split_once("://").unwrap());
        pairs.map(|(name, address)| (name.to_owned(), address.to_owned())).collect()
    };
    let (bound, advertised) = (listeners("KAFKA_LISTENERS"), listeners("KAFKA_ADVERTISED_LISTENERS"));
    for (name, address) in &advertised {
        assert_eq!(bound[name].rsplit_once(':').unwrap().1, address.rsplit_once(':').unwrap().1, "{name}");
        assert!(variables["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].contains(&format!("{name}:")), "{name}");
    }
    let inside = &advertised[&variables["KAFKA_INTER_BROKER_LISTENER_NAME"]];
    for (name, service) in compose.ours() {
        assert_eq!(&service.variables()["SWEEPSTREAM_KAFKA__BOOTSTRAP_SERVERS"], inside, "{name}");
    }
    // The program on the host needs no setting.
    let host = Settings::default().kafka.bootstrap_servers;
    assert!(advertised.values().any(|address| *address == host), "{host} is not advertised");
    let port = host.rsplit_once(':').unwrap().1;
    assert_eq!(kafka.ports, [format!("127.0.0.1:{port}:{port}")]);
    let data = &variables["KAFKA_LOG_DIRS"];
    assert!(kafka.volumes.iter().any(|mount| mount.ends_with(&format!(":{data}"))), "{data} is in no volume");
}

#[test]
fn prometheus_asks_every_stage_at_the_port_that_the_image_opens() {
    let address = image_environment().remove("SWEEPSTREAM_HTTP__ADDRESS").unwrap();
    let (host, port) = address.rsplit_once(':').unwrap();
    assert_eq!((host, of_image("EXPOSE").join(" ").as_str()), ("0.0.0.0", port));
    let prometheus: Value = serde_saphyr::from_str(&read("deploy/prometheus/prometheus.yml")).unwrap();
    let discoveries: Vec<&Value> = prometheus["scrape_configs"].as_array().unwrap().iter().flat_map(dns).collect();
    let asked: BTreeSet<&str> = discoveries.iter().flat_map(|dns| strings(&dns["names"])).collect();
    assert!(discoveries.iter().all(|dns| dns["port"].as_u64() == port.parse().ok()), "another port than {port}");
    let compose = compose();
    let stages: BTreeSet<&str> =
        compose.ours().filter(|(_, service)| service.profiles.is_empty()).map(|(name, _)| name.as_str()).collect();
    assert_eq!(asked, stages);
}

fn dns(scrape: &Value) -> impl Iterator<Item = &Value> {
    scrape["dns_sd_configs"].as_array().into_iter().flatten()
}

fn strings(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

#[test]
fn stages_may_do_little_and_can_be_many() {
    for (name, service) in compose().ours() {
        assert!(service.read_only && service.cap_drop == ["ALL"], "{name}");
        assert_eq!(service.security_opt, ["no-new-privileges:true"], "{name}");
        assert!(service.ports.is_empty() && service.container_name.is_none(), "{name} cannot be scaled");
    }
    for (name, service) in compose().services {
        for port in service.ports {
            assert!(port.starts_with("127.0.0.1:"), "{name} publishes {port} to the world");
        }
    }
}

/// Whether clap takes the arguments: it does if the settings' error comes after it.
fn is_command_line(arguments: &[String]) -> Result<(), String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sweepstream"));
    let _ = command.args(arguments).args(["--set", "zzz.zzz=1"]).stdin(Stdio::null());
    let output = command.output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code() == Some(78)).then_some(()).ok_or(format!("{arguments:?}: {message}"))
}

#[test]
fn commands_are_command_lines() {
    for (name, service) in compose().ours() {
        assert!(!service.command.is_empty(), "{name}");
        is_command_line(&service.command).unwrap();
    }
    is_command_line(&exec_form(&of_image("CMD")[0])).unwrap();
    let healthcheck = of_image("HEALTHCHECK").remove(0);
    let asked = exec_form(healthcheck.split_once("CMD ").unwrap().1);
    assert_eq!(asked[0], exec_form(&of_image("ENTRYPOINT")[0])[0]);
    is_command_line(&asked[1..]).unwrap();
    let document = read("docs/container.md");
    let calls = document.lines().filter(|line| line.contains("docker compose run"));
    for call in calls.filter_map(|line| line.split_once(" cli ").map(|(_, rest)| rest)) {
        let words = call.split(['|', '&', '<', '>', ')', '#', '`']).next().unwrap();
        is_command_line(&words.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).unwrap();
    }
}

#[test]
fn the_image_has_what_its_instructions_name() {
    let user = of_image("USER").remove(0);
    // In numbers: Kubernetes cannot tell whether a name is root.
    assert!(user.split(':').all(|id| id.parse::<u32>().is_ok_and(|id| id != 0)), "user {user}");
    let environment = image_environment();
    let built: Vec<String> =
        dockerfile().into_iter().filter(|(name, _)| name == "RUN").map(|(_, arguments)| arguments).collect();
    let makes = |path: &str| built.iter().any(|line| line.contains(&format!("/image{path}")));
    let program = format!("{}/{}", environment["PATH"], exec_form(&of_image("ENTRYPOINT")[0])[0]);
    assert!(makes(&program), "no step makes {program}");
    assert!(makes(&environment["SWEEPSTREAM_PARTS"]), "no step makes the parts");
    let certificates = Path::new(&environment["SSL_CERT_FILE"]).file_name().unwrap().to_str().unwrap();
    assert!(built.iter().any(|line| line.contains(certificates)), "no step copies {certificates}");
}

#[test]
fn the_build_sees_what_it_reads_and_little_else() {
    for (_, arguments) in dockerfile().iter().filter(|(name, _)| name == "COPY") {
        let source = arguments.split(' ').next().unwrap();
        let elsewhere_or_all = source.starts_with("--from") || source == ".";
        assert!(elsewhere_or_all || (root().join(source).exists() && let_through(source)), "COPY {source}");
    }
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    let mut wanted: Vec<String> = ["Cargo.toml", "Cargo.lock", "LICENSE"].map(str::to_owned).into();
    wanted.extend(["src", "parts", "topics"].into_iter().flat_map(files));
    for kind in ["bench", "test"] {
        for target in manifest[kind].as_array().unwrap() {
            let path = target.get("path").and_then(toml::Value::as_str).map(str::to_owned);
            wanted.push(path.unwrap_or_else(|| format!("benches/{}.rs", target["name"].as_str().unwrap())));
        }
    }
    // What is compiled in, unless only tests do so.
    let of_tests = |source: &String| source.contains("/tests/") || source.ends_with("/tests.rs");
    for source in files("src").into_iter().filter(|source| !of_tests(source)) {
        let text = read(&source);
        let code = text.split("\n#[cfg(test)]\n").next().unwrap();
        for (at, _) in code.match_indices("include_str!(\"") {
            let relative = code[at..].split('"').nth(1).unwrap();
            wanted.push(relative.trim_start_matches("../").to_owned());
        }
    }
    for path in wanted {
        assert!(root().join(&path).exists() && let_through(&path), "{path} does not reach the build");
    }
    for path in ["target/release/sweepstream", ".local/models/x", ".git/config", "docs/container.md", "README.md"] {
        assert!(!let_through(path), "{path} reaches the build");
    }
}
