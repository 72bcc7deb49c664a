//! The server's own account of itself: its `/status` page is embedded in the report, its `/metrics` page says what CPU
//! and memory it used.
//!
//! One request a connection over HTTP/1.1, to a server that we know: no library is needed for that.

use std::{collections::BTreeMap, io, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// How long the page may take: it is made by a thread that does nothing else.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where the server's pages are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusPage {
    address: String,
}

/// What the server used and dropped since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ServerCounters {
    /// CPU time of all its threads, in seconds.
    pub cpu_s: f64,
    /// Memory that it has now.
    pub memory_bytes: f64,
    /// Datagrams that it could not keep.
    pub datagrams_dropped: f64,
}

impl StatusPage {
    /// The pages at this address, with or without `http://`, as given, else as the server's configuration says;
    /// `None` if neither does.
    pub fn find(given: Option<&str>, config: &Value) -> Option<Self> {
        let configured = config["server"]["http"].as_str().filter(|address| !address.ends_with(":0"));
        let address = given.or(configured)?.trim_start_matches("http://").trim_end_matches('/').to_owned();
        Some(StatusPage { address })
    }

    /// The address.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The status.
    ///
    /// Errors: nobody answers, or not with JSON.
    pub async fn status(&self) -> io::Result<Value> {
        serde_json::from_str(&self.get("/status").await?).map_err(io::Error::other)
    }

    /// The counters.
    ///
    /// Errors: nobody answers.
    pub async fn counters(&self) -> io::Result<ServerCounters> {
        Ok(counters(&self.get("/metrics").await?))
    }

    async fn get(&self, path: &str) -> io::Result<String> {
        let exchange = async {
            let mut stream = TcpStream::connect(&self.address).await?;
            let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address);
            stream.write_all(request.as_bytes()).await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            Ok::<_, io::Error>(answer)
        };
        let answer = timeout(PATIENCE, exchange).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        body(&answer)
    }
}

/// The body of an answer that is whole and says 200.
fn body(answer: &[u8]) -> io::Result<String> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| io::Error::other("this is no HTTP"))?;
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    if status != "200" {
        return Err(io::Error::other(format!("the answer is {status}")));
    }
    if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return Err(io::Error::other("the answer comes in chunks, which this reader does not put together"));
    }
    Ok(body.to_owned())
}

fn counters(page: &str) -> ServerCounters {
    let lines = page.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(' '));
    let values: BTreeMap<&str, f64> = lines.filter_map(|(name, value)| Some((name, value.parse().ok()?))).collect();
    let value = |name: &str| values.get(name).copied().unwrap_or(0.0);
    ServerCounters {
        cpu_s: value("dlog_process_cpu_seconds"),
        memory_bytes: value("dlog_process_resident_memory_bytes"),
        datagrams_dropped: value("dlog_datagrams_dropped_total"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn the_address_is_the_one_given_else_the_one_configured() {
        let config = json!({ "server": { "http": "127.0.0.1:9644" } });
        let address = |given, config: &Value| StatusPage::find(given, config).map(|page| page.address);
        assert_eq!(address(Some("http://h:1/"), &config).as_deref(), Some("h:1"));
        assert_eq!(address(None, &config).as_deref(), Some("127.0.0.1:9644"));
        assert_eq!(address(None, &json!({ "server": { "http": "127.0.0.1:0" } })), None);
        assert_eq!(address(None, &json!({})), None);
    }

    #[test]
    fn pages_are_fetched_and_read() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let page = StatusPage { address: listener.local_addr().unwrap().to_string() };
            let serve = async |answer: String| {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let len = stream.read(&mut request).await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
                String::from_utf8_lossy(&request[..len]).into_owned()
            };
            let ok = "HTTP/1.1 200 OK\r\ncontent-type: x\r\n\r\n";
            let (request, status) = tokio::join!(serve(format!("{ok}{{\"version\":\"1\"}}")), page.status());
            assert!(request.starts_with("GET /status HTTP/1.1\r\n"), "{request}");
            assert_eq!(status.unwrap()["version"], "1");
            let metrics =
                "# HELP x y\ndlog_process_cpu_seconds 1.5\ndlog_process_resident_memory_bytes 1e6\nx{a=\"b\"} 1\n";
            let (_, counters) = tokio::join!(serve(format!("{ok}{metrics}")), page.counters());
            let counters = counters.unwrap();
            assert_eq!((counters.cpu_s, counters.memory_bytes, counters.datagrams_dropped), (1.5, 1e6, 0.0));
            let (_, refused) = tokio::join!(serve("HTTP/1.1 503 No\r\n\r\n".to_owned()), page.status());
            assert!(refused.unwrap_err().to_string().contains("503"));
        });
    }
}
