//! A rolling upgrade: one process after the other is replaced, under load, and the broker that the records go to is killed
//! meanwhile. `M365_AUDIT_PREVIOUS` names the binary that the fleet begins with: a build of before. Without it both are
//! this build.

use super::*;
use test_support::{free_port, program};

const TOPIC: &str = "m365-audit";

/// Apache Kafka, one node in KRaft mode.
struct Broker {
    lib: PathBuf,
    java: PathBuf,
    kcat: PathBuf,
    port: u16,
    dir: tempfile::TempDir,
    child: Option<Child>,
}

impl Broker {
    /// `None`: something is missing, which has been reported.
    async fn start() -> Option<Self> {
        let (lib, java, kcat) = (program("kafka")?, program("java")?, program("kcat")?);
        let (dir, port, controller) = (tempfile::tempdir().unwrap(), free_port(), free_port());
        let properties = format!(
            "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:{controller}\n\
             listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\ncontroller.listener.names=CONTROLLER\n\
             log.dirs={}/data\noffsets.topic.replication.factor=1\n",
            dir.path().display()
        );
        fs::write(dir.path().join("server.properties"), properties).unwrap();
        let mut broker = Self { lib, java, kcat, port, dir, child: None };
        let format = ["format", "-t", "5L6g3nShT-eMCtK--X86sw", "-c", "server.properties"];
        assert!(broker.java("kafka.tools.StorageTool").args(format).output().unwrap().status.success());
        broker.resume().await;
        let server = format!("127.0.0.1:{port}");
        let create = ["--bootstrap-server", &server, "--create", "--topic", TOPIC, "--partitions", "3"];
        let made = broker.java("org.apache.kafka.tools.TopicCommand").args(create).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
        Some(broker)
    }

    fn java(&self, class: &str) -> Command {
        let mut command = Command::new(&self.java);
        command.args(["-Xmx512m", "-cp"]).arg(self.lib.join("*")).arg(class).current_dir(self.dir.path());
        command.stdin(Stdio::null());
        command
    }

    async fn resume(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let mut server = self.java("kafka.Kafka");
        server.arg("server.properties").stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(server.spawn().unwrap());
        let begun = Instant::now();
        while !self.kcat(&["-L", "-m", "2"]).status.success() {
            assert!(begun.elapsed() < PATIENCE, "{}", fs::read_to_string(self.dir.path().join("log")).unwrap());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn kcat(&self, arguments: &[&str]) -> std::process::Output {
        Command::new(&self.kcat).arg("-b").arg(format!("127.0.0.1:{}", self.port)).args(arguments).output().unwrap()
    }

    /// How often each key is in the topic.
    fn times(&self) -> BTreeMap<String, usize> {
        let read = self.kcat(&["-C", "-t", TOPIC, "-o", "beginning", "-e", "-q", "-f", "%k\n"]);
        let mut times = BTreeMap::new();
        for key in String::from_utf8_lossy(&read.stdout).lines() {
            *times.entry(key.to_owned()).or_default() += 1;
        }
        times
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_upgrade_into_kafka_whose_broker_is_killed_loses_nothing() {
    if !cfg!(feature = "kafka") {
        return test_support::skip("kafka", "this build is without the feature `kafka`");
    }
    let Some(mut broker) = Broker::start().await else { return };
    let Some(mut fleet) = Fleet::new(12).await else { return };
    fleet.sink = Some(format!("type = \"kafka\"\nbrokers = [\"127.0.0.1:{}\"]\ntopic = \"{TOPIC}\"\n", broker.port));
    fleet.keys = "in_flight_bytes_max = 4194304".into();
    let previous = std::env::var_os("M365_AUDIT_PREVIOUS").map(PathBuf::from);
    for worker in 0..3 {
        fleet.program = previous.clone();
        fleet.start(worker);
    }
    fleet.until("all three are there", || fleet.cluster_status().starts_with("3 members, 12 tenants, 0 ")).await;
    let mut round = 0;
    let mut publish = async |fleet: &mut Fleet, rounds: usize| {
        for _ in 0..rounds {
            round += 1;
            fleet.add_for_all(&format!("round-{round}"));
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    publish(&mut fleet, 6).await;
    fleet.program = None;
    for worker in 0..3 {
        assert!(fleet.end(worker, "-TERM"), "{}", fleet.logs());
        publish(&mut fleet, 2).await;
        // Away for a while, with records on their way.
        broker.kill();
        publish(&mut fleet, 6).await;
        fleet.start(worker);
        publish(&mut fleet, 2).await;
        broker.resume().await;
        publish(&mut fleet, 4).await;
        fleet.until("it is there", || fleet.cluster_status().starts_with("3 members, 12 tenants, 0 ")).await;
    }
    let missing = |broker: &Broker, fleet: &Fleet| {
        let times = broker.times();
        fleet.events.iter().filter(|id| !times.contains_key(*id)).count()
    };
    let begun = Instant::now();
    while missing(&broker, &fleet) > 0 {
        assert!(begun.elapsed() < PATIENCE, "{} missing\n{}", missing(&broker, &fleet), fleet.logs());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    for worker in 0..3 {
        assert!(fleet.end(worker, "-TERM"), "{}", fleet.logs());
    }
    let twice = broker.times().into_iter().filter(|(id, times)| *times > 1 && fleet.events.contains(id)).count();
    let from = previous.map_or("this build".to_owned(), |path| path.display().to_string());
    println!("from {from}, broker killed three times: {} events, 0 missing, {twice} twice", fleet.events.len());
    // Tenants also move while the broker is away, and what is on its way then is unconfirmed after the 8 s that a move waits.
    assert!(twice * 4 <= fleet.events.len(), "{twice}: {}", fleet.logs());
}
