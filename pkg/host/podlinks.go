package host

import (
	"context"
	"fmt"
	"slices"

	"sigs.k8s.io/knftables"

	"github.com/weft-cni/weft/pkg/model"
)

// podLinksChain drops packets that arrive on a pod's veth. They belong to the switch, but with the userspace datapath
// OVS only reads a copy (packet socket) and the kernel also delivers the packet to the host: a pod that addresses
// frames to the host's end of its veth would bypass the switch, its spoof guard and all policies. With the kernel
// datapath that is the case until the port is added. ARP and IPv6 are disabled on these links; the chain covers the
// rest.
const podLinksChain = "from-pod-links"

// Before raw and conntrack.
var podLinksChains = []knftables.Chain{
	hooked(podLinksChain, knftables.FilterType, knftables.PreroutingHook, "-450"),
}

func addPodLinksRule(add func(chain, comment string, words ...any)) {
	add(podLinksChain, "from pods' links", "meta iifgroup", "{", model.LinkGroupAttached, ",", model.LinkGroupAdding, "}",
		"counter drop")
}

// FilterPodLinks makes the host's network stack drop packets that arrive on a pod's veth, before the first Sync. The
// rest of the table is not changed. Idempotent; it writes nothing when the rule exists, so that its counter continues.
func (h *Host) FilterPodLinks(ctx context.Context) error { return h.nft.filterPodLinks(ctx) }

func (n *nat) filterPodLinks(ctx context.Context) error {
	rules := slices.DeleteFunc(rules(Desired{}), func(r *knftables.Rule) bool { return r.Chain != podLinksChain })
	if have, err := n.listRules(ctx, podLinksChain); err != nil || have == rulesText(rules) {
		return err
	}
	n.rules = "" // whatever removed the chain may have changed the table
	tx := n.nft.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Add(&podLinksChains[0])
	tx.Flush(&podLinksChains[0])
	for _, r := range rules {
		tx.Add(r)
	}
	if err := n.run(ctx, tx); err != nil {
		return fmt.Errorf("keep pods' packets from the node's kernel (nftables table %s): %w", tableName, err)
	}
	return nil
}
