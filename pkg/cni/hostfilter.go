package cni

import (
	"context"
	"fmt"
	"hash/fnv"

	"sigs.k8s.io/knftables"
)

// HostFilterTable is Weft's nftables table of family inet. No other program writes it.
const HostFilterTable = "weft-cni"

// SyncHostFilter makes the host's network stack drop packets that arrive on a pod's veth. They belong to the switch,
// but with the userspace datapath OVS only reads a copy (packet socket) and the kernel also delivers the packet to the
// host: a pod that addresses frames to the host's end of its veth would bypass the switch, its spoof guard and all
// policies. With the kernel datapath that is the case until the port is added. ARP and IPv6 are disabled on these
// links; the filter covers the rest.
//
// Idempotent. It writes nothing when the rule exists, so that its counter continues. Recover calls it, and so does the
// agent when nftables changed. nft prints a rule in another form than it was written, so the rule is recognized by a
// hash of its text in the comment.
func SyncHostFilter(ctx context.Context, nft knftables.Interface) error {
	const chain = "prerouting"
	rule := knftables.Concat("meta iifgroup", "{", GroupAttached, ",", GroupAdding, "}", "counter drop")
	sum := fnv.New32a()
	sum.Write([]byte(rule))
	comment := fmt.Sprintf("from pods' links (%08x)", sum.Sum32())
	have, err := nft.ListRules(ctx, chain)
	if err != nil && !knftables.IsNotFound(err) {
		return fmt.Errorf("list nftables chain %s %s: %w", HostFilterTable, chain, err)
	}
	if len(have) == 1 && have[0].Comment != nil && *have[0].Comment == comment {
		return nil
	}
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{
		Comment: knftables.PtrTo("what pods send belongs to Open vSwitch, not to the node's kernel"),
	})
	tx.Add(&knftables.Chain{
		Name: chain,
		Type: knftables.PtrTo(knftables.FilterType),
		Hook: knftables.PtrTo(knftables.PreroutingHook),
		// Before raw and conntrack.
		Priority: knftables.PtrTo(knftables.BaseChainPriority("-450")),
	})
	tx.Flush(&knftables.Chain{Name: chain})
	tx.Add(&knftables.Rule{Chain: chain, Rule: rule, Comment: knftables.PtrTo(comment)})
	if err := nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("keep pods' packets from the node's kernel (nftables table %s): %w", HostFilterTable, err)
	}
	return nil
}

// SyncHostFilter restores the filter after another program removed it. Recover must have been called.
func (s *Server) SyncHostFilter(ctx context.Context) error { return SyncHostFilter(ctx, s.cfg.NFT) }
