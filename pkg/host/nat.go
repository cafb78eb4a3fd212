package host

import (
	"context"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"

	"sigs.k8s.io/knftables"

	"github.com/weft-cni/weft/pkg/model"
)

const (
	tableName = "weft"
	chainName = "postrouting"
)

// nat keeps the nftables table right. nft does not give a rule back as it was written, so rules are compared by their
// comments, which hold a hash of the rule. Somebody who replaces a rule and keeps its comment is not found out.
type nat struct{ nft knftables.Interface }

// family is one address family's part of the table.
type family struct {
	is4       bool
	proto     string // as rules match it: "ip saddr"
	set, kind string
}

var families = []family{
	{is4: true, proto: "ip", set: "direct-v4", kind: "ipv4_addr"},
	{is4: false, proto: "ip6", set: "direct-v6", kind: "ipv6_addr"},
}

// rules are the chain's. Packets for the node itself never pass it.
func rules(d Desired) []*knftables.Rule {
	var list []*knftables.Rule
	add := func(comment string, words ...any) {
		text := knftables.Concat(words...)
		sum := fnv.New32a()
		sum.Write([]byte(text))
		list = append(list, &knftables.Rule{
			Chain:   chainName,
			Rule:    text,
			Comment: knftables.PtrTo(fmt.Sprintf("%s (%08x)", comment, sum.Sum32())),
		})
	}
	gateway := `"` + d.Gateway + `"`
	for _, f := range families {
		local, ok := d.local(f.is4)
		if !ok {
			continue
		}
		// Other nodes accept from our tunnel only what this node owns, so the node's other addresses must not appear there.
		add("node to remote pods: from the gateway address",
			"oifname", gateway, f.proto, "saddr !=", model.GatewayAddr(local).String(), f.proto, "daddr !=", local.String(),
			"fib saddr type local", "snat", f.proto, "to", model.GatewayAddr(local).String(), "fully-random")
		// The switch does not let pods write to tunnel ports outside, but a Service's address may be translated to one after
		// it. In the node's name it would pass for the node's own tunnel packet.
		add("pods to tunnel ports: never",
			f.proto, "saddr", local.String(), "oifname !=", gateway, "udp dport", "{", model.VXLAN.UDPPort(), ",", model.Geneve.UDPPort(), "}", "drop")
		if d.Masquerade {
			add("pods to the world: from the node's address",
				f.proto, "saddr", local.String(), "oifname !=", gateway, f.proto, "daddr !=", "@"+f.set, "masquerade fully-random")
		}
	}
	return list
}

// direct are the destinations that see pods' own addresses: all pods, and the configured exceptions. Ranges inside others
// are left out, because an interval set takes no overlap.
func direct(d Desired, is4 bool) []string {
	all := slices.DeleteFunc(slices.Concat(d.PodCIDRs, d.RemotePodCIDRs, d.NoMasquerade), func(p netip.Prefix) bool { return p.Addr().Is4() != is4 })
	slices.SortFunc(all, netip.Prefix.Compare)
	var list []string
	var last netip.Prefix
	for _, p := range all {
		if last.IsValid() && last.Overlaps(p) {
			continue
		}
		last = p
		list = append(list, element(p))
	}
	return list
}

// element writes a prefix as nft lists it: a range of one address is that address.
func element(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// isElement is false for ranges that are not prefixes.
func isElement(s string) bool {
	_, err := netip.ParsePrefix(s)
	if err != nil {
		_, err = netip.ParseAddr(s)
	}
	return err == nil
}

// sync compares the table and either changes elements or, when anything else differs, makes the table anew. Both are one
// transaction; connections keep the source address that they have.
func (n *nat) sync(ctx context.Context, c *changes, d Desired) error {
	right, err := n.rulesRight(ctx, rules(d))
	if err != nil {
		return err
	}
	if right {
		right, err = n.syncElements(ctx, c, d)
		if right || err != nil {
			return err
		}
	}
	tx := n.nft.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	tx.Add(&knftables.Table{Comment: knftables.PtrTo("Weft pod network; made anew when changed")})
	for _, f := range families {
		tx.Add(&knftables.Set{Name: f.set, Type: f.kind, Flags: []knftables.SetFlag{knftables.IntervalFlag}})
		for _, e := range direct(d, f.is4) {
			tx.Add(&knftables.Element{Set: f.set, Key: []string{e}})
		}
	}
	tx.Add(&knftables.Chain{
		Name:     chainName,
		Type:     knftables.PtrTo(knftables.NATType),
		Hook:     knftables.PtrTo(knftables.PostroutingHook),
		Priority: knftables.PtrTo(knftables.SNATPriority),
	})
	for _, r := range rules(d) {
		tx.Add(r)
	}
	if err := n.nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("write nftables table %s: %w", tableName, err)
	}
	c.add("nftables table %s written", tableName)
	return nil
}

// rulesRight tells whether the chain holds exactly these rules.
func (n *nat) rulesRight(ctx context.Context, want []*knftables.Rule) (bool, error) {
	have, err := n.nft.ListRules(ctx, chainName)
	if knftables.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("list nftables chain %s %s: %w", tableName, chainName, err)
	}
	return slices.EqualFunc(have, want, func(h, w *knftables.Rule) bool { return h.Comment != nil && *h.Comment == *w.Comment }), nil
}

// syncElements adds and removes single elements. It reports false when that is not enough, because a set is missing or
// holds what we never put there.
func (n *nat) syncElements(ctx context.Context, c *changes, d Desired) (bool, error) {
	tx := n.nft.NewTransaction()
	var done changes
	for _, f := range families {
		have, err := n.nft.ListElements(ctx, "set", f.set)
		if knftables.IsNotFound(err) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("list nftables set %s %s: %w", tableName, f.set, err)
		}
		missing := map[string]bool{}
		for _, e := range direct(d, f.is4) {
			missing[e] = true
		}
		for _, e := range have {
			if missing[e.Key[0]] {
				delete(missing, e.Key[0])
				continue
			}
			if !isElement(e.Key[0]) {
				return false, nil
			}
			tx.Delete(&knftables.Element{Set: f.set, Key: e.Key})
			done.add("nftables set %s: %s removed", f.set, e.Key[0])
		}
		for _, e := range direct(d, f.is4) {
			if missing[e] {
				tx.Add(&knftables.Element{Set: f.set, Key: []string{e}})
				done.add("nftables set %s: %s added", f.set, e)
			}
		}
	}
	if tx.NumOperations() == 0 {
		return true, nil
	}
	if err := n.nft.Run(ctx, tx); err != nil {
		return false, fmt.Errorf("change nftables table %s: %w", tableName, err)
	}
	c.list = append(c.list, done.list...)
	return true, nil
}
