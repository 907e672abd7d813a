//! The runtime killed in the middle of its work, and several at work on one container at once.
//!
//! `GANTRY_TEST_ROUNDS` makes more of it; the seed of a failing round is in its message (`GANTRY_TEST_SEED`).

mod world;

use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use world::{Ran, World, no_change};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(default)
}

/// xorshift64*: the same rounds for the same seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % limit
    }
}

/// Every process that has `id` in its cgroup.
fn processes(id: &str) -> Vec<String> {
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| fs::read_to_string(path.join("cgroup")).is_ok_and(|text| text.contains(id)))
        .filter(|path| {
            // One that has ended and waits for its parent to look is gone.
            let stat = fs::read_to_string(path.join("stat")).unwrap_or_default();
            stat.rsplit_once(") ")
                .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
        })
        .map(|path| fs::read_to_string(path.join("stat")).unwrap_or_default())
        .collect()
}

fn cgroups(id: &str) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap();
    text.lines()
        .flat_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (names, own) = (fields.next().unwrap(), fields.next().unwrap());
            let own = own.trim_start_matches('/').to_owned();
            let mounts: Vec<String> = match names {
                "" => vec!["unified".to_owned(), String::new()],
                names => names
                    .split(',')
                    .map(|n| n.trim_start_matches("name=").to_owned())
                    .collect(),
            };
            let parents = [
                own.clone(),
                Path::new(&own)
                    .parent()
                    .map_or(String::new(), |p| p.display().to_string()),
            ];
            mounts.into_iter().flat_map(move |mount| {
                parents
                    .clone()
                    .map(|own| Path::new("/sys/fs/cgroup").join(&mount).join(own))
            })
        })
        .map(|base| base.join(id))
        .filter(|path| path.exists())
        .collect()
}

/// Nothing of a container is left anywhere.
fn is_clean(world: &World, id: &str) -> Result<(), String> {
    let state = world.directory.join("state").join(id);
    if state.exists() {
        let names: Vec<_> = fs::read_dir(&state)
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.file_name())
            .collect();
        return Err(format!("state {names:?}"));
    }
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let (left, running) = (cgroups(id), processes(id));
        if left.is_empty() && running.is_empty() {
            return Ok(());
        }
        // An init whose maker was killed is told so by the end of its socket, a moment later.
        if Instant::now() > until {
            return Err(format!("cgroups {left:?}, processes {running:?}"));
        }
        std::thread::yield_now();
    }
}

fn spawn(world: &World, arguments: &[&str]) -> Child {
    let mut command = world.program(arguments);
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// How long a command takes, so that the kills hit all of it.
fn duration(world: &World, arguments: &[&str]) -> Duration {
    let began = Instant::now();
    let _ = spawn(world, arguments).wait();
    began.elapsed()
}

fn kill_after(mut child: Child, wait: Duration) {
    // Not to wait for anything: the moment is what is tried.
    std::thread::sleep(wait);
    let _ = child.kill();
    let _ = child.wait();
}

#[test]
fn killed_at_any_moment_everything_can_be_deleted() {
    let Some(mut world) = World::new() else {
        return;
    };
    let rounds = number("GANTRY_TEST_ROUNDS", 30);
    let seed = number("GANTRY_TEST_SEED", 0x5eed_0001);
    let bundle = world.bundle(&["sleep", "1000"], |spec| {
        // With a hook, so that some kills hit the wait for it.
        spec["hooks"]["createRuntime"] = json!([{ "path": "/bin/true" }]);
        spec["linux"]["resources"]["pids"] = json!({ "limit": 20 });
    });
    let bundle = bundle.to_str().unwrap().to_owned();
    let id = world.id();
    let create = ["create", "-b", &bundle, &id];
    let typical = duration(&world, &create).max(Duration::from_millis(4));
    assert_eq!(world.call(&["delete", "-f", &id]).code, 0);
    let mut chance = Chance(seed);
    let mut moment = |typical: Duration| typical.mul_f64(chance.below(1200) as f64 / 1000.0);
    for round in 0..rounds {
        let what = ["create", "start", "exec", "delete", "run"][(round % 5) as usize];
        if !matches!(what, "create" | "run") {
            let made = spawn(&world, &create).wait().unwrap();
            assert!(made.success(), "seed {seed} round {round}");
        }
        if matches!(what, "exec" | "delete") {
            assert_eq!(
                world.call(&["start", &id]).code,
                0,
                "seed {seed} round {round}"
            );
        }
        let arguments: &[&str] = match what {
            "create" => &create,
            "run" => &["run", "-b", &bundle, &id],
            "start" => &["start", &id],
            "exec" => &["exec", &id, "sleep", "1000"],
            _ => &["delete", "-f", &id],
        };
        kill_after(spawn(&world, arguments), moment(typical));
        // The state can be read whenever there is one, and a list never fails.
        let state = world.call(&["state", &id]);
        match state.code {
            0 => assert!(
                serde_json::from_str::<Value>(&state.out).is_ok(),
                "{}",
                state.out
            ),
            _ => assert!(
                state.err.contains("container does not exist"),
                "seed {seed} round {round} {what}: {}",
                state.err
            ),
        }
        assert_eq!(world.call(&["list"]).code, 0);
        let deleted = world.call(&["delete", "--force", &id]);
        assert_eq!(
            deleted.code, 0,
            "seed {seed} round {round} {what}: {}",
            deleted.err
        );
        is_clean(&world, &id)
            .unwrap_or_else(|e| panic!("seed {seed} round {round}, {what} killed: {e}"));
    }
}

/// Runs the same or different commands at once.
fn at_once(world: &World, commands: &[Vec<&str>]) -> Vec<Ran> {
    let barrier = std::sync::Barrier::new(commands.len());
    std::thread::scope(|scope| {
        let threads: Vec<_> = commands
            .iter()
            .map(|arguments| {
                let barrier = &barrier;
                scope.spawn(move || {
                    let mut command = world.program(arguments);
                    // A created container keeps the streams that it is given.
                    let log = world
                        .directory
                        .join(format!("log-{:?}", std::thread::current().id()));
                    command
                        .stdout(Stdio::null())
                        .stderr(fs::File::create(&log).unwrap());
                    barrier.wait();
                    let status = command.status().unwrap();
                    Ran {
                        code: status.code().unwrap_or(-1),
                        out: String::new(),
                        err: fs::read_to_string(&log).unwrap(),
                    }
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

#[test]
fn of_several_at_once_exactly_one_wins() {
    let Some(mut world) = World::new() else {
        return;
    };
    let bundle = world.bundle(&["sleep", "1000"], no_change);
    let bundle = bundle.to_str().unwrap().to_owned();
    let id = world.id();
    let won = |all: &[Ran], words: &[&str]| {
        let winners = all.iter().filter(|r| r.code == 0).count();
        for loser in all.iter().filter(|r| r.code != 0) {
            assert_eq!(loser.code, 1);
            assert!(
                words.iter().any(|w| loser.err.contains(w)),
                "{words:?}: {}",
                loser.err
            );
        }
        winners
    };
    for _ in 0..number("GANTRY_TEST_ROUNDS", 40) / 4 {
        let create = vec!["create", "-b", bundle.as_str(), id.as_str()];
        let all = at_once(
            &world,
            &[create.clone(), create.clone(), create.clone(), create],
        );
        assert_eq!(won(&all, &["container with given ID already exists"]), 1);
        let start = vec!["start", id.as_str()];
        let all = at_once(&world, &[start.clone(), start.clone(), start]);
        assert_eq!(won(&all, &["cannot start an already running container"]), 1);
        assert_eq!(world.state(&id)["status"], "running");
        let kill = vec!["kill", id.as_str(), "KILL"];
        let all = at_once(&world, &[kill.clone(), kill.clone(), kill]);
        assert!(won(&all, &["container not running"]) >= 1);
        let until = Instant::now() + Duration::from_secs(10);
        while world.state(&id)["status"] != "stopped" {
            assert!(Instant::now() < until);
        }
        let delete = vec!["delete", id.as_str()];
        let all = at_once(&world, &[delete.clone(), delete.clone(), delete]);
        assert_eq!(won(&all, &["container does not exist"]), 1);
        is_clean(&world, &id).unwrap();
    }
    // One makes it, others take it away: whatever comes first, the end is nothing or a whole container.
    for _ in 0..number("GANTRY_TEST_ROUNDS", 40) / 4 {
        let create = vec!["create", "-b", bundle.as_str(), id.as_str()];
        let delete = vec!["delete", "-f", id.as_str()];
        let all = at_once(&world, &[create, delete.clone(), delete]);
        let exists = world.call(&["state", &id]).code == 0;
        assert!(
            all[1].code == 0 && all[2].code == 0,
            "{} {}",
            all[1].err,
            all[2].err
        );
        if exists {
            assert_eq!(all[0].code, 0, "{}", all[0].err);
        }
        assert_eq!(world.call(&["delete", "-f", &id]).code, 0);
        is_clean(&world, &id).unwrap();
    }
}

#[test]
fn what_a_killed_maker_left_is_no_container_until_it_is_deleted() {
    let Some(mut world) = World::new() else {
        return;
    };
    let bundle = world.bundle(&["sleep", "1000"], no_change);
    let bundle = bundle.to_str().unwrap().to_owned();
    let id = world.sleeping(no_change);
    // As if it had been killed just before it noted the first process.
    fs::remove_file(world.directory.join("state").join(&id).join("init")).unwrap();
    for arguments in [
        &["state", &id][..],
        &["start", &id],
        &["delete", &id],
        &["kill", &id],
    ] {
        let ran = world.call(arguments);
        assert!(
            ran.code == 1 && ran.err.contains("container does not exist"),
            "{arguments:?}: {}",
            ran.err
        );
    }
    assert_eq!(world.call(&["list", "-q"]).out, "");
    let again = world.call(&["create", "-b", &bundle, &id]);
    assert!(
        again.err.contains("container with given ID already exists"),
        "{}",
        again.err
    );
    assert!(!processes(&id).is_empty());
    assert_eq!(world.call(&["delete", "-f", &id]).code, 0);
    is_clean(&world, &id).unwrap();
}

#[test]
#[ignore = "long: make test-long"]
fn a_thousand_runs_under_load_lose_no_exit() {
    let Some(world) = World::new() else {
        return;
    };
    let runs = number("GANTRY_TEST_ROUNDS", 1000);
    let bundle = world.bundle(&["sh", "-c", "exit 3"], no_change);
    let bundle = bundle.to_str().unwrap();
    let base = world
        .directory
        .file_name()
        .unwrap()
        .to_string_lossy()
        .into_owned();
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let mut load: Vec<_> = (0..cores)
        .map(|_| {
            std::process::Command::new("sh")
                .args(["-c", "while :; do :; done"])
                .spawn()
                .unwrap()
        })
        .collect();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for run in 0..runs {
            let id = format!("{base}-{run}");
            let ran = world.call(&["run", "-b", bundle, &id]);
            assert_eq!(ran.code, 3, "run {run}: {}", ran.err);
        }
    }));
    for child in &mut load {
        let _ = child.kill();
        let _ = child.wait();
    }
    result.unwrap();
}
