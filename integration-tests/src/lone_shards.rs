//! Shards without a router, as a benchmark or a person with grpcurl wants them.

use std::process::{Child, Command, Stdio};
use std::time::Instant;

use proto::v1::shard_client::ShardClient;
use tonic::transport::Channel;

use crate::{PATIENCE, Server, executable};

/// Shard processes of their own with the model of a running server. Dropping them kills them.
#[derive(Debug)]
pub struct LoneShards {
    processes: Vec<Child>,
    prefix: String,
}

impl LoneShards {
    /// Starts as many shards as `server` has, with the command lines that its launcher gave them but other sockets, and
    /// waits until they serve.
    pub async fn start(server: &Server, prefix: &str) -> LoneShards {
        let shards = server.children().into_iter().filter(|child| child.role() == "shard");
        let processes = shards.map(|shard| {
            let own = |word: &&String| {
                !word.is_empty() && !word.starts_with("--uds-path") && !word.starts_with("--comm-name")
            };
            Command::new(executable())
                .args(shard.argv[1..].iter().filter(own))
                .arg(format!("--uds-path={prefix}"))
                .arg(format!("--comm-name=/tgi-lone-shards-{}", server.pid()))
                .stdout(Stdio::null())
                .spawn()
                .expect("the executable can be started")
        });
        let shards = LoneShards { processes: processes.collect(), prefix: prefix.to_owned() };
        for rank in 0..shards.processes.len() {
            shards.connect(rank as u32).await;
        }
        shards
    }

    /// A client of shard `rank`.
    ///
    /// # Panics
    /// If nothing answers within [`PATIENCE`].
    pub async fn connect(&self, rank: u32) -> ShardClient<Channel> {
        let socket = proto::socket_path(&self.prefix, rank);
        let start = Instant::now();
        loop {
            match proto::connect(&socket).await {
                Ok(channel) => return ShardClient::new(channel),
                Err(error) => assert!(start.elapsed() < PATIENCE, "{error}"),
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
}

impl Drop for LoneShards {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
