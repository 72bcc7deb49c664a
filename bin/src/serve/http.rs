//! The operator's window: `/health`, `/status` and `/metrics`, on the control thread, away from the cores.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Instant,
};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use pyralog_engine::types::CoreId;
use pyralog_net::server::ServerInfo;
use serde_json::{Value, json};

use super::{
    cores::Cores,
    drives::{DriveView, drive_of_core},
    partitions::{self, Partition},
    prometheus,
    sampler::{self, Sampler},
};

/// What the pages are made of.
pub struct Window {
    /// The cores.
    pub cores: Cores,
    /// The drives, in the order in which cores are dealt out to them.
    pub drives: Vec<DriveView>,
    /// What the operator was told at the start.
    pub warnings: Vec<String>,
    /// What the server says of itself.
    pub info: Arc<ServerInfo>,
    /// Where clients reach it.
    pub listen: SocketAddr,
    /// Where these pages are.
    pub http: SocketAddr,
    /// The certificate's fingerprint.
    pub fingerprint: String,
    /// Since when it serves.
    pub started: Instant,
    /// Whether it is stopping.
    pub draining: AtomicBool,
    /// The last minute.
    pub sampler: Mutex<Sampler>,
    /// Counts what is not on the hot path.
    pub cold: PrometheusHandle,
}

/// The recorder for what is not on the hot path; the process has one.
pub fn install_recorder(version: &str) -> PrometheusHandle {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    // Fails only if there is one already, as in tests; then that one counts.
    let _ = metrics::set_global_recorder(recorder);
    metrics::describe_gauge!("dlog_build_info", "Always 1; the label says which version this is.");
    metrics::gauge!("dlog_build_info", "version" => version.to_owned()).set(1.0);
    metrics::describe_gauge!("dlog_cores", "Cores that serve.");
    metrics::describe_gauge!("dlog_uptime_seconds", "Time since the server was ready.");
    metrics::describe_gauge!("dlog_process_resident_memory_bytes", "Memory of the process.");
    metrics::describe_gauge!("dlog_process_cpu_seconds", "CPU time of the process, all cores.");
    metrics::describe_gauge!("dlog_partitions", "Partitions that are open.");
    metrics::describe_gauge!("dlog_partitions_read_only", "Partitions that a fault stopped from taking writes.");
    metrics::describe_gauge!("dlog_partitions_without_leader", "Partitions of whose copies none leads.");
    metrics::describe_gauge!(
        "dlog_partitions_under_replicated",
        "Partitions of whose copies fewer keep up than there are to be."
    );
    metrics::describe_gauge!(
        "dlog_in_sync_replicas",
        "Copies that keep up with the leader of their partition, itself included."
    );
    metrics::describe_gauge!("dlog_replicas_rebuilding", "Copies that lost their memory and are being rebuilt.");
    metrics::describe_gauge!("dlog_rebuild_records_left", "Records that these have yet to be given back.");
    metrics::describe_counter!("dlog_http_requests_total", "Requests for these pages.");
    handle
}

/// The pages.
pub fn router(window: Arc<Window>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/status", get(status))
        .route("/metrics", get(metrics_page))
        .with_state(window)
}

async fn health(State(window): State<Arc<Window>>) -> impl IntoResponse {
    metrics::counter!("dlog_http_requests_total").increment(1);
    // A load balancer takes a server out as soon as it stops taking work, before its sockets close.
    match window.draining.load(Relaxed) {
        true => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "status": "draining" }))),
        false => (StatusCode::OK, Json(json!({ "status": "ok" }))),
    }
}

async fn status(State(window): State<Arc<Window>>) -> Json<Value> {
    metrics::counter!("dlog_http_requests_total").increment(1);
    let cores = &window.cores;
    let partitions = partitions::all(cores).await;
    let shown: Vec<Value> = cores
        .cpus
        .iter()
        .zip(&cores.metrics)
        .enumerate()
        .map(|(core, (cpu, metrics))| {
            let id = CoreId(core as u16);
            let led = partitions.iter().filter(|partition| partition.is_led_by(id)).count();
            let copies: usize = partitions.iter().map(|partition| partition.copies_on(id)).sum();
            let counters = prometheus::by_name(metrics);
            json!({ "core": core, "cpu": cpu, "partitions": led, "copies": copies, "counters": counters })
        })
        .collect();
    let info = &window.info;
    let mut page = json!({
        "version": info.version,
        "pid": std::process::id(),
        "status": if window.draining.load(Relaxed) { "draining" } else { "ok" },
        "uptime_seconds": window.started.elapsed().as_secs(),
        "listen": window.listen,
        "http": window.http,
        "fingerprint": window.fingerprint,
        "epoch_number": partitions.iter().map(|partition| partition.status.epoch).max().unwrap_or_default(),
        "profile": info.profile,
        "ack": info.ack,
        "guarantee": info.guarantee,
        "copies": info.copies,
        "drive": prometheus::drive(&cores.metrics),
        "drives": drives(&window, &partitions),
        "warnings": window.warnings,
        "cores": shown,
        "partitions": partitions.iter().map(Partition::shown).collect::<Vec<_>>(),
        "config": info.config,
    });
    let key_metrics = lock(&window.sampler).key_metrics(&cores.metrics, partitions::isr_count(&partitions));
    if let (Some(page), Value::Object(figures)) = (page.as_object_mut(), key_metrics) {
        page.insert("last_minute".to_owned(), Value::Object(figures.clone()));
        page.extend(figures.into_iter().filter(|(name, _)| name != "seconds"));
    }
    Json(page)
}

/// Each drive with what is on it.
fn drives(window: &Window, partitions: &[Partition]) -> Vec<Value> {
    let all = window.drives.iter().enumerate();
    let shown = all.map(|(at, view)| {
        let own: Vec<usize> = (0..window.cores.cpus.len()).filter(|core| at_drive(*core, window) == at).collect();
        let metrics: Vec<_> = own.iter().map(|core| Arc::clone(&window.cores.metrics[*core])).collect();
        let is_here = |core: CoreId| own.contains(&usize::from(core.0));
        let copies = own.iter().flat_map(|core| partitions.iter().map(|p| p.copies_on(CoreId(*core as u16))));
        let rebuilding = || partitions.iter().flat_map(Partition::rebuilding).filter(|one| is_here(one.core));
        let mut shown = json!({
            "drive": view.number,
            "dir": view.dir,
            "file_system": view.volume.file_system,
            "device": view.volume.device,
            "total_bytes": view.volume.total_bytes,
            "cores": own,
            "at_start": view.at_start,
            "copies": copies.sum::<usize>(),
            "copies_rebuilding": rebuilding().count(),
            "rebuild_records_left": rebuilding().map(|one| one.records_left).sum::<u64>(),
        });
        if let Some(page) = shown.as_object_mut() {
            page.extend(prometheus::drive(&metrics));
        }
        shown
    });
    shown.collect()
}

fn at_drive(core: usize, window: &Window) -> usize {
    drive_of_core(CoreId(core as u16), window.drives.len())
}

async fn metrics_page(State(window): State<Arc<Window>>) -> impl IntoResponse {
    metrics::counter!("dlog_http_requests_total").increment(1);
    let partitions = partitions::all(&window.cores).await;
    let count = |which: fn(&Partition) -> bool| partitions.iter().filter(|partition| which(partition)).count() as f64;
    metrics::gauge!("dlog_partitions").set(partitions.len() as f64);
    metrics::gauge!("dlog_partitions_read_only").set(count(|partition| partition.status.read_only.is_some()));
    metrics::gauge!("dlog_partitions_without_leader").set(count(|partition| !partition.status.leads));
    metrics::gauge!("dlog_partitions_under_replicated").set(count(Partition::is_under_replicated));
    metrics::gauge!("dlog_in_sync_replicas").set(partitions.iter().map(Partition::in_sync).sum::<usize>() as f64);
    let rebuilding: Vec<_> = partitions.iter().flat_map(Partition::rebuilding).collect();
    metrics::gauge!("dlog_replicas_rebuilding").set(rebuilding.len() as f64);
    let left: u64 = rebuilding.iter().map(|one| one.records_left).sum();
    metrics::gauge!("dlog_rebuild_records_left").set(left as f64);
    metrics::gauge!("dlog_cores").set(window.cores.cpus.len() as f64);
    metrics::gauge!("dlog_uptime_seconds").set(window.started.elapsed().as_secs_f64());
    metrics::gauge!("dlog_process_resident_memory_bytes").set(sampler::resident_bytes() as f64);
    metrics::gauge!("dlog_process_cpu_seconds").set(sampler::cpu_time().as_secs_f64());
    let page = prometheus::render(&window.cores.metrics)
        + &prometheus::render_drives(&window.drives, &window.cores.metrics)
        + &window.cold.render();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page)
}

/// Samples are whole whatever thread panicked.
pub fn lock(sampler: &Mutex<Sampler>) -> std::sync::MutexGuard<'_, Sampler> {
    sampler.lock().unwrap_or_else(PoisonError::into_inner)
}
