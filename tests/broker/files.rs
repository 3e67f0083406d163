//! Files that commands write are whole, or as they were.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{symlink, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::lab::Lab;
use crate::support::command;

/// Its parameters take more than 64 kB.
const WIDE: &str = "name = \"w\"\nmodel = \"mlp\"\nhidden = 3000\nepochs = 1\nbatch_size = 8\nvalidation = 5\n";

/// A file system of 64 kB, unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Nothing, where this user may not mount one.
    fn mount(at: PathBuf) -> Option<Self> {
        fs::create_dir(&at).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(&at).output();
        mounted.is_ok_and(|mounted| mounted.status.success()).then(|| Self(at))
    }

    /// Leaves next to nothing free.
    fn fill(&self) {
        let mut filler = fs::File::create(self.0.join("filler")).unwrap();
        while filler.write_all(&[1; 1024]).is_ok() {}
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(&self.0).status());
    }
}

/// A search with one finished trial.
fn trained(name: &str) -> (Lab, String, String) {
    let lab = Lab::with_points(name, 1, 30);
    let search = lab.start(WIDE);
    lab.train(&[&search]);
    let trial = search.trials[0].trial.clone();
    (lab, search.id, trial)
}

/// Commands that write a file, which is their last argument.
fn writing<'a>(search: &'a str, trial: &'a str) -> [(Vec<&'a str>, &'static str); 3] {
    [
        (vec!["checkpoint", "export", trial], "old.safetensors"),
        (vec!["plot", search], "old.svg"),
        (vec!["plot", search], "old.png"),
    ]
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_full_disk_costs_nobody_the_old_file() {
    let (lab, search, trial) = trained("full");
    let disk = SmallDisk::mount(lab.file("disk"));
    // A disk of its own where that may be mounted, and everywhere a limit on files that the system sets.
    let limited = lab.file("limited");
    fs::create_dir(&limited).unwrap();
    let mut folders = vec![(limited, "trap '' XFSZ; ulimit -f 8; exec \"$0\" \"$@\"")];
    match &disk {
        Some(disk) => folders.push((disk.0.clone(), "exec \"$0\" \"$@\"")),
        None => println!("this user may not mount a file system: tried under `ulimit -f` alone"),
    }
    for (folder, shell) in folders {
        for (_, file) in writing(&search, &trial) {
            fs::write(folder.join(file), "the old one").unwrap();
        }
        if let Some(disk) = disk.as_ref().filter(|disk| disk.0 == folder) {
            disk.fill();
        }
        let before = names(&folder);
        for (arguments, file) in writing(&search, &trial) {
            for file in [file.to_owned(), format!("new-{file}")] {
                let file = folder.join(file);
                let there = file.exists();
                let plain = command(&lab.settings, &[&arguments[..], &[file.to_str().unwrap()]].concat());
                let mut run = Command::new("sh");
                let _ = run.args(["-c", shell]).arg(plain.get_program()).args(plain.get_args());
                let _ = run.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
                let ended = run.stdin(Stdio::null()).output().unwrap();
                let stderr = String::from_utf8(ended.stderr).unwrap();
                assert_eq!(ended.status.code(), Some(1), "{}: {stderr}", file.display());
                let last = stderr.lines().last().unwrap();
                let now = if there { "the file is as it was" } else { "there is no file" };
                assert!(last.contains(file.to_str().unwrap()) && last.contains(now), "{last}");
                if there {
                    assert_eq!(fs::read_to_string(&file).unwrap(), "the old one");
                }
            }
        }
        assert_eq!(names(&folder), before, "something was left behind");
    }
}

#[test]
fn what_is_replaced_keeps_its_permissions_and_its_links() {
    let (lab, search, trial) = trained("replaced");
    let folder = lab.file("files");
    fs::create_dir(&folder).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    let export = |path: &Path| {
        let ended = lab.command(&["checkpoint", "export", &trial, path.to_str().unwrap()]);
        assert_eq!(ended.code, 0, "{}", ended.stderr);
    };
    // As any other new file.
    let (new, other) = (folder.join("new.safetensors"), folder.join("other"));
    export(&new);
    fs::write(&other, "").unwrap();
    assert_eq!(mode(&new), mode(&other));
    let whole = fs::read(&new).unwrap();

    fs::set_permissions(&new, Permissions::from_mode(0o640)).unwrap();
    fs::write(&new, "old").unwrap();
    export(&new);
    assert_eq!((fs::read(&new).unwrap() == whole, mode(&new)), (true, 0o640));

    let (link, dangling) = (folder.join("link"), folder.join("dangling"));
    fs::write(&new, "old").unwrap();
    symlink("new.safetensors", &link).unwrap();
    symlink("made", &dangling).unwrap();
    for (link, target) in [(&link, &new), (&dangling, &folder.join("made"))] {
        export(link);
        assert!(fs::symlink_metadata(link).unwrap().is_symlink());
        assert!(fs::read(target).unwrap() == whole);
    }

    let fifo = folder.join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let (path, wanted) = (fifo.clone(), whole.clone());
    let reader = std::thread::Builder::new().spawn(move || fs::read(path).unwrap() == wanted).unwrap();
    export(&fifo);
    assert!(reader.join().unwrap());

    // What standard output is, somebody else has opened: it is not replaced.
    let out = folder.join("out");
    let mut file = fs::File::create(&out).unwrap();
    file.write_all(b"before ").unwrap();
    let run = command(&lab.settings, &["checkpoint", "export", &trial, "/dev/stdout"])
        .stdout(file.try_clone().unwrap())
        .stderr(Stdio::null())
        .status();
    assert!(run.unwrap().success());
    let mut kept = Vec::new();
    let _ = fs::File::open(&out).unwrap().read_to_end(&mut kept).unwrap();
    assert!(kept == [b"before ".as_slice(), &whole].concat());

    let svg = folder.join("plot.svg");
    fs::write(&svg, "old").unwrap();
    fs::set_permissions(&svg, Permissions::from_mode(0o604)).unwrap();
    assert_eq!(lab.command(&["plot", &search, svg.to_str().unwrap()]).code, 0);
    assert_eq!((fs::read_to_string(&svg).unwrap().starts_with("<svg"), mode(&svg)), (true, 0o604));
    let left = names(&folder);
    assert!(left.iter().all(|name| !name.starts_with('.')), "{left:?}");
}

#[test]
fn a_picture_of_a_search_that_measured_nothing_says_why_there_is_none() {
    let lab = Lab::with_points("nothing", 1, 30);
    let search = lab.start(&format!("{WIDE}learning_rate = [1e30, 1e31]"));
    let plot = || lab.command(&["plot", &search.id, lab.file("plot.svg").to_str().unwrap()]);
    let before = plot();
    assert_eq!(before.code, 1);
    assert!(before.stderr.contains("no measurements yet"), "{}", before.stderr);
    lab.train(&[&search]);
    let after = plot();
    assert_eq!(after.code, 1);
    for wanted in ["all its trials ended without one", "2 diverged (", "sweepstream trials list --search"] {
        assert!(after.stderr.contains(wanted), "{wanted:?} is not in: {}", after.stderr);
    }
    assert!(!lab.file("plot.svg").exists());
}
