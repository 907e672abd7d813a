//! User-defined networks: made, removed and pruned with their events. The networks themselves are the crate `network`'s.

use crate::prune::{Filters, until};
use crate::{Engine, Record};
use gantry_base::{ErrorKind, Result};
use gantry_network::{CreateNetwork, Record as Network};
use std::collections::BTreeMap;
use std::sync::Arc;

impl Engine {
    pub async fn network_create(&self, request: CreateNetwork) -> Result<Network> {
        let network = self.0.networks.create_network(request).await?;
        self.say_of_network(&network, "create");
        Ok(network)
    }

    /// By name, ID, or ID prefix. Refused while a container is connected.
    pub async fn network_remove(&self, name: &str) -> Result<()> {
        let network = self.0.networks.remove_network(name).await?;
        self.say_of_network(&network, "destroy");
        Ok(())
    }

    /// Removes networks that no running container uses (`until`, `label`, `label!`). Returns their names.
    pub async fn network_prune(&self, filters: &Filters) -> Result<Vec<String>> {
        let until_ns = until(filters)?;
        let containers = self.list();
        let mut removed = Vec::new();
        for network in self.0.networks.list() {
            if network.is_predefined()
                || uses(&containers, &network)
                || until_ns.is_some_and(|until| network.created_at_ns > until)
                || !filters.labels(&network.labels)
            {
                continue;
            }
            match self.network_remove(&network.id).await {
                Ok(()) => removed.push(network.name),
                // Used or removed by somebody else meanwhile.
                Err(e) if matches!(e.kind(), ErrorKind::Forbidden | ErrorKind::NotFound) => {}
                Err(e) => tracing::warn!(
                    network = network.name,
                    error = e.chain(),
                    "pruning a network"
                ),
            }
        }
        let attributes = BTreeMap::from([("reclaimed".to_owned(), "0".to_owned())]);
        self.0.events.publish("network", "prune", "", attributes);
        Ok(removed)
    }

    fn say_of_network(&self, network: &Network, action: &str) {
        let attributes = BTreeMap::from([
            ("name".to_owned(), network.name.clone()),
            ("type".to_owned(), network.driver.clone()),
        ]);
        self.0
            .events
            .publish("network", action, network.id.clone(), attributes);
    }
}

/// Whether a container that is not wholly gone from it is recorded there.
fn uses(containers: &[Arc<Record>], network: &Network) -> bool {
    containers
        .iter()
        .flat_map(|record| record.endpoints.values())
        .any(|endpoint| endpoint.network_id == network.id)
}
