//! placeholder
use crate::store::Store;
use serde::Deserialize;
/// placeholder
#[derive(Debug, Clone, Deserialize)]
pub struct Settings {
    /// placeholder
    pub name: String,
    /// placeholder
    pub secret: crate::secret::Source,
}
impl Settings {
    /// placeholder
    pub fn check(&self) -> Result<(), (String, String)> {
        Ok(())
    }
    /// placeholder
    pub fn target(&self) -> crate::store::Target {
        crate::store::Target {
            name: self.name.clone(),
            statuses: vec![crate::model::Status::Completed],
            send_unresolved: false,
        }
    }
}
/// placeholder
pub struct Target;
impl Target {
    /// placeholder
    pub fn new(_: Settings, _: secrecy::SecretString) -> anyhow::Result<Self> {
        Ok(Target)
    }
    /// placeholder
    pub fn name(&self) -> &str {
        ""
    }
}
/// placeholder
pub async fn run(_: Store, _: Vec<Target>, mut s: tokio::sync::watch::Receiver<bool>) -> anyhow::Result<()> {
    let _ = s.wait_for(|x| *x).await;
    Ok(())
}
/// placeholder
pub async fn probe(_: &Target) -> Result<Vec<String>, String> {
    Ok(vec![])
}
