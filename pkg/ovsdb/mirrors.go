package ovsdb

import (
	"context"
	"fmt"
	"slices"
)

// Mirrors returns the names of the mirrors of Weft's bridge, sorted. Weft neither adds nor removes mirrors: they are an
// administrator's tool (ovs-tcpdump), but they copy pods' packets and cost forwarding capacity.
func (c *Client) Mirrors(ctx context.Context) ([]string, error) {
	s, err := c.session(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the mirrors of bridge %s: %w", c.bridge, err)
	}
	v, err := s.snapshot(c.bridge)
	if err != nil {
		return nil, fmt.Errorf("read the mirrors of bridge %s: %w", c.bridge, err)
	}
	if v.bridge == nil || len(v.bridge.Mirrors) == 0 {
		return nil, nil
	}
	all, err := rows[mirrorRow](s, tableMirror)
	if err != nil {
		return nil, fmt.Errorf("read the mirrors of bridge %s: %w", c.bridge, err)
	}
	var names []string
	for _, uuid := range v.bridge.Mirrors {
		if m := all[uuid]; m != nil {
			names = append(names, m.Name)
		}
	}
	slices.Sort(names)
	return names, nil
}
