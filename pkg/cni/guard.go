package cni

import (
	"context"
	"fmt"
	"hash/fnv"

	"sigs.k8s.io/knftables"
)

// GuardTable is our nftables table of family inet. Nobody else writes it.
const GuardTable = "weft-cni"

// Guard makes the node's kernel drop what reaches it through a pod's veth. All of it belongs to the switch, but with the
// userspace datapath OVS only listens in: the kernel goes on to treat the packet as received, so a pod that addresses
// frames to its veth's other end would get past the switch, its spoof guard and every policy. With the kernel's datapath
// that is so until the port is added. ARP and IPv6 are off on these links; this is about the rest.
//
// It is idempotent, and writes nothing when the rule stands, so that its counter goes on. Recover calls it; whoever watches
// over the node's packet filter calls it again. nft does not give a rule back as it was written, so the rule is known by its
// comment, which holds a hash of it.
func Guard(ctx context.Context, nft knftables.Interface) error {
	const chain = "prerouting"
	rule := knftables.Concat("meta iifgroup", "{", GroupAttached, ",", GroupAdding, "}", "counter drop")
	sum := fnv.New32a()
	sum.Write([]byte(rule))
	comment := fmt.Sprintf("from pods' links (%08x)", sum.Sum32())
	have, err := nft.ListRules(ctx, chain)
	if err != nil && !knftables.IsNotFound(err) {
		return fmt.Errorf("list nftables chain %s %s: %w", GuardTable, chain, err)
	}
	if len(have) == 1 && have[0].Comment != nil && *have[0].Comment == comment {
		return nil
	}
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{Comment: knftables.PtrTo("what pods send belongs to Open vSwitch, not to the node's kernel")})
	tx.Add(&knftables.Chain{
		Name: chain,
		Type: knftables.PtrTo(knftables.FilterType),
		Hook: knftables.PtrTo(knftables.PreroutingHook),
		// Before raw and connection tracking.
		Priority: knftables.PtrTo(knftables.BaseChainPriority("-450")),
	})
	tx.Flush(&knftables.Chain{Name: chain})
	tx.Add(&knftables.Rule{Chain: chain, Rule: rule, Comment: knftables.PtrTo(comment)})
	if err := nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("keep pods' packets from the node's kernel (nftables table %s): %w", GuardTable, err)
	}
	return nil
}

// Guard puts the packet filter in place again, in case somebody flushed it. Recover must have been called.
func (s *Server) Guard(ctx context.Context) error { return Guard(ctx, s.cfg.NFT) }
