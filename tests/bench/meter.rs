//! Where the servers are, and what processes cost: CPU time and memory, from `/proc`.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;
use serde::Serialize;

/// `/proc` counts CPU time in these, on all machines that Linux runs on today.
const TICKS_PER_SECOND: f64 = 100.0;

/// The servers of `deploy/servers`.
#[derive(Clone, Debug)]
pub(crate) struct Servers {
    /// URL of the superuser.
    pub(crate) postgres: String,
    /// `host:port`.
    pub(crate) kafka: String,
    /// Goes with them when they are taken down.
    pub(crate) folder: PathBuf,
    postgres_pid: u32,
    kafka_pid: u32,
}

impl Servers {
    /// Finds them by the variables that `deploy/servers` sets.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let variable = |name: &str| {
            std::env::var(name)
                .with_context(|| format!("{name} is not set\nhint: run deploy/bench, or this under deploy/servers --"))
        };
        let folder = PathBuf::from(variable("OUTBOXD_TEST_DIR")?);
        let pid = |server: &str| -> anyhow::Result<u32> {
            let file = folder.join(server).join("pid");
            let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            text.trim().parse().with_context(|| format!("{} holds no pid", file.display()))
        };
        let (postgres, kafka) = (variable("OUTBOXD_TEST_POSTGRES")?, variable("OUTBOXD_TEST_KAFKA")?);
        Ok(Self { postgres_pid: pid("postgres")?, kafka_pid: pid("kafka")?, postgres, kafka, folder })
    }

    /// Its version, by the name of the jar that runs: the protocol does not tell it.
    pub(crate) fn kafka_version(&self) -> anyhow::Result<String> {
        let command = fs::read(format!("/proc/{}/cmdline", self.kafka_pid)).context("Kafka is not running")?;
        let command = String::from_utf8_lossy(&command);
        let version = command.split("/kafka_2.13-").nth(1).and_then(|rest| rest.split(".jar").next());
        Ok(version.unwrap_or("unknown").to_owned())
    }
}

/// Measures from its start on.
#[derive(Debug)]
pub(crate) struct Meter {
    servers: Servers,
    at_start: Sample,
}

/// Who moves the events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    /// This process.
    Floor,
    /// A relay, by the roots of its process tree. What was not there at the start of the meter counts from its own start.
    Relay(Vec<u32>),
}

#[derive(Clone, Debug)]
struct Sample {
    bench: f64,
    postgres: f64,
    kafka: f64,
    /// By root. What has ended since may still be found, as a zombie, and is none of what runs later.
    relay: HashMap<u32, f64>,
    machine: Machine,
}

#[derive(Clone, Copy, Debug)]
struct Machine {
    all: f64,
    busy: f64,
    stolen: f64,
}

/// What was used between two looks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// CPU seconds, of the user and of the system.
    pub(crate) client: f64,
    pub(crate) postgres: f64,
    pub(crate) kafka: f64,
    /// Of this process, whoever the client is.
    pub(crate) bench: f64,
    /// Of the machine's CPU time, what nobody used.
    pub(crate) idle_percent: f64,
    /// Of the machine's CPU time, what went to processes that have no part in this.
    pub(crate) elsewhere_percent: f64,
    /// Of the machine's CPU time, what the host took.
    pub(crate) stolen_percent: f64,
}

impl Meter {
    /// Starts to measure.
    pub(crate) fn start(servers: &Servers, client: &Client) -> anyhow::Result<Self> {
        Ok(Self { at_start: sample(servers, client)?, servers: servers.clone() })
    }

    /// Tells what was used since the start.
    pub(crate) fn read(&self, client: &Client) -> anyhow::Result<Usage> {
        let (now, then) = (sample(&self.servers, client)?, &self.at_start);
        let since = |now: f64, then: f64| (now - then).max(0.0); // a backend that has just ended may be in neither reading
        let before = |root: &u32| then.relay.get(root).copied().unwrap_or_default();
        let relay: f64 = now.relay.iter().map(|(root, &seconds)| since(seconds, before(root))).sum();
        let bench = since(now.bench, then.bench);
        let (postgres, kafka) = (since(now.postgres, then.postgres), since(now.kafka, then.kafka));
        let (all, busy) = (now.machine.all - then.machine.all, now.machine.busy - then.machine.busy);
        let percent = |part: f64| (100.0 * part / all.max(1.0 / TICKS_PER_SECOND)).max(0.0);
        Ok(Usage {
            client: if *client == Client::Floor { bench } else { relay },
            postgres,
            kafka,
            bench,
            idle_percent: percent(all - busy - (now.machine.stolen - then.machine.stolen)),
            elsewhere_percent: percent(busy - bench - relay - postgres - kafka),
            stolen_percent: percent(now.machine.stolen - then.machine.stolen),
        })
    }
}

impl Usage {
    /// Shares the CPU seconds out among the events.
    pub(crate) fn per_million(&self, events: u32) -> Cpu {
        let millions = f64::from(events) / 1e6;
        Cpu { client: self.client / millions, postgres: self.postgres / millions, kafka: self.kafka / millions }
    }
}

/// CPU seconds per million events.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Cpu {
    pub(crate) client: f64,
    pub(crate) postgres: f64,
    pub(crate) kafka: f64,
}

fn sample(servers: &Servers, client: &Client) -> anyhow::Result<Sample> {
    let (one, other) = (processes()?, processes()?);
    // The larger of two readings: a child that ends during one is in it neither by itself nor with its parent.
    let of = |pid| tree(&one, pid).max(tree(&other, pid));
    Ok(Sample {
        bench: other.get(&std::process::id()).map_or(0.0, |process| process.own),
        postgres: of(servers.postgres_pid),
        kafka: of(servers.kafka_pid),
        relay: match client {
            Client::Relay(roots) => roots.iter().map(|&root| (root, of(root))).collect(),
            Client::Floor => HashMap::new(),
        },
        machine: machine()?,
    })
}

#[derive(Clone, Copy, Debug)]
struct Process {
    parent: u32,
    /// Its CPU seconds.
    own: f64,
    /// Those of the children that it has waited for.
    ended: f64,
}

fn processes() -> anyhow::Result<HashMap<u32, Process>> {
    let mut found = HashMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Some(process) = fs::read_to_string(format!("/proc/{pid}/stat")).ok().as_deref().and_then(process) {
            found.insert(pid, process);
        }
    }
    Ok(found)
}

/// Reads `/proc/PID/stat`. The name in it may hold blanks, so counting starts behind its parenthesis.
fn process(stat: &str) -> Option<Process> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
    let seconds = |user: usize, system: usize| Some((ticks(user)? + ticks(system)?) / TICKS_PER_SECOND);
    Some(Process { parent: fields.get(1)?.parse().ok()?, own: seconds(11, 12)?, ended: seconds(13, 14)? })
}

/// The CPU seconds of a process, of its ended children and of all that live below it.
fn tree(all: &HashMap<u32, Process>, root: u32) -> f64 {
    let Some(process) = all.get(&root) else { return 0.0 };
    let children = all.iter().filter(|(_, child)| child.parent == root);
    process.own + process.ended + children.map(|(&pid, _)| tree(all, pid)).sum::<f64>()
}

fn machine() -> anyhow::Result<Machine> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<f64> = line.split_ascii_whitespace().skip(1).map(str::parse).collect::<Result<_, _>>()?;
    let [user, nice, system, idle, waiting, interrupts, soft, stolen, ..] = *ticks else {
        anyhow::bail!("/proc/stat says {line}")
    };
    let busy = user + nice + system + interrupts + soft;
    let all = busy + idle + waiting + stolen;
    Ok(Machine { all: all / TICKS_PER_SECOND, busy: busy / TICKS_PER_SECOND, stolen: stolen / TICKS_PER_SECOND })
}

/// Lets the peaks of memory start anew from what is resident now.
pub(crate) fn reset_peaks(roots: &[u32]) -> anyhow::Result<()> {
    for pid in below(roots)? {
        // What ends in between needs no reset; the kernel refuses it for nothing of ours.
        drop(fs::write(format!("/proc/{pid}/clear_refs"), "5"));
    }
    Ok(())
}

/// The most memory that each process of these trees has had resident, added up.
pub(crate) fn peak_memory_bytes(roots: &[u32]) -> anyhow::Result<u64> {
    let peaks = below(roots)?.into_iter().filter_map(peak);
    Ok(peaks.sum::<u64>() * 1024)
}

/// In KiB; a process that has ended has none.
fn peak(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim().trim_end_matches(" kB").parse().ok()
}

/// These processes and all that live below them.
fn below(roots: &[u32]) -> anyhow::Result<Vec<u32>> {
    let (all, mut found) = (processes()?, roots.to_vec());
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(all.iter().filter(|(_, process)| process.parent == parent).map(|(&pid, _)| pid));
        next += 1;
    }
    Ok(found)
}
