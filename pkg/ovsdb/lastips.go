package ovsdb

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"strings"

	"github.com/ovn-org/libovsdb/ovsdb"
)

// SetLastIPs records the last allocated addresses on the bridge, so that a new agent continues after them. It does not
// wait for ovs-vswitchd. Without a bridge it has no effect. Idempotent.
func (c *Client) SetLastIPs(ctx context.Context, ips []netip.Addr) error {
	text := make([]string, len(ips))
	for i, ip := range ips {
		text[i] = ip.String()
	}
	key := ovsdb.OvsSet{GoSet: []any{idLastIPs}}
	value := ovsdb.OvsMap{GoMap: map[any]any{idLastIPs: strings.Join(text, ",")}}
	_, err := c.commit(ctx, []ovsdb.Operation{mutate(tableBridge, where("name", c.bridge),
		*ovsdb.NewMutation("external_ids", ovsdb.MutateOperationDelete, key),
		*ovsdb.NewMutation("external_ids", ovsdb.MutateOperationInsert, value))})
	if err != nil {
		return fmt.Errorf("record the last addresses on bridge %s: %w", c.bridge, err)
	}
	return nil
}

// LastIPs returns the addresses that SetLastIPs recorded. Invalid ones are skipped: the record only spreads the use of
// addresses.
func (c *Client) LastIPs(ctx context.Context) ([]netip.Addr, error) {
	s, err := c.session(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the last addresses: %w", err)
	}
	all, err := rows[bridgeRow](s, tableBridge)
	if err != nil {
		return nil, fmt.Errorf("read the last addresses: %w", err)
	}
	var ips []netip.Addr
	for _, b := range all {
		if b.Name != c.bridge {
			continue
		}
		for text := range strings.SplitSeq(b.ExternalIDs[idLastIPs], ",") {
			if ip, err := netip.ParseAddr(text); err == nil {
				ips = append(ips, ip)
			}
		}
	}
	return ips, nil
}

// withoutLastIPs are a bridge's external_ids without the key that changes with every pod.
func withoutLastIPs(ids map[string]string) map[string]string {
	if _, ok := ids[idLastIPs]; !ok {
		return ids
	}
	rest := maps.Clone(ids)
	delete(rest, idLastIPs)
	return rest
}
