package ovsdb

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/ovn-org/libovsdb/ovsdb"

	"github.com/weft-cni/weft/pkg/model"
)

// Zone is a conntrack zone.
type Zone struct {
	Number uint16
	// Keep is the timeout of connections in every state, after their last packet; 0 uses Linux' timeouts.
	Keep time.Duration
}

// Bridge is the desired configuration of the bridge. Connect has its name.
type Bridge struct {
	// Datapath is "system" (the kernel's) or "netdev" (userspace).
	Datapath string
	// GatewayMTU is the MTU of the gateway port in bytes; 0 leaves it to OVS.
	GatewayMTU int
	// Tables names the flow tables.
	Tables map[uint8]string
	// Zones are the conntrack zones whose timeouts Weft sets on the userspace datapath.
	Zones []Zone
	// Tunnel is the encapsulation with which the node sends, whose port must work. A broken port of another one is an
	// OptionalPortError. When empty, the ports of all encapsulations must work.
	Tunnel model.Encapsulation
	// TunnelChecksum makes outer UDP headers carry a checksum. Over IPv4 it costs time on the userspace datapath,
	// and has no advantage on kernels since 5.12. Set it over IPv6, whose header has no checksum of the outer
	// addresses.
	TunnelChecksum bool
	// Version of the writer, for administrators. Empty leaves the recorded version unchanged.
	Version string
	// Pods are the pods' ports that the caller knows, by name. A port of that name gets this record, number and
	// policing, regardless of its external_ids. Other pods' ports are repaired from their own record.
	Pods map[string]model.Attachment
}

const (
	typeInternal = "internal"
	failSecure   = "secure"
	idBridge     = "weft"
	idVersion    = idPrefix + "version"
	// bridgeMAC is the address of the bridge's LOCAL port, which carries no traffic. It is fixed because OVS otherwise
	// takes the lowest address of all ports, and each change of it changes the datapath id and drops OpenFlow
	// connections.
	bridgeMAC = "0a:57:65:66:74:00"
	// applyTimeout bounds the wait for ovs-vswitchd, in addition to the caller's context.
	applyTimeout = 30 * time.Second
)

// OptionalPortError reports a broken port that the node does not need for its own pods: that of a tunnel type with
// which only other nodes send, such as during a change of type. The rest of the bridge is in sync.
type OptionalPortError struct {
	Port string
	Err  error
}

func (e *OptionalPortError) Error() string {
	return fmt.Sprintf("port %s: %v (nodes that still send with this tunnel type cannot reach this one)", e.Port, e.Err)
}

func (e *OptionalPortError) Unwrap() error { return e.Err }

// protocols let all versions of ovs-ofctl connect without options.
var protocols = []string{"OpenFlow10", "OpenFlow11", "OpenFlow12", "OpenFlow13", "OpenFlow14", "OpenFlow15"}

var bridgeConfig = map[string]string{
	"disable-in-band": "true", // no hidden flows
	"hwaddr":          bridgeMAC,
}

// ports are the ports that every bridge has.
func (b Bridge) ports(bridge string) []interfaceRow {
	gateway := interfaceRow{
		Name:          model.GatewayName,
		Type:          typeInternal,
		OFPortRequest: ptr(int(model.PortGateway)),
		MAC:           ptr(model.GatewayMAC.String()),
	}
	if b.GatewayMTU > 0 {
		gateway.MTURequest = ptr(b.GatewayMTU)
	}
	rows := []interfaceRow{
		{Name: bridge, Type: typeInternal}, // the LOCAL port, as ovs-vsctl add-br creates it
		gateway,
	}
	for _, e := range model.Encapsulations {
		rows = append(rows, b.tunnel(e))
	}
	return rows
}

// tunnel is the only port of an encapsulation: flows set both outer addresses and the key of each packet. Without
// local_ip=flow, ovs-vswitchd takes the source that a flow sets out again (tnl_port_send, ofproto/tunnel.c).
func (b Bridge) tunnel(e model.Encapsulation) interfaceRow {
	options := map[string]string{"remote_ip": "flow", "local_ip": "flow", "key": "flow"}
	maps.Copy(options, e.InterfaceOptions())
	if b.TunnelChecksum && e.UDPPort() != 0 { // GRE's checksum does not cover the outer addresses
		options["csum"] = "true"
	}
	return interfaceRow{Name: e.PortName(), Type: e.InterfaceType(), OFPortRequest: ptr(int(e.Port())), Options: options}
}

// EnsureBridge makes the bridge match want: its settings, its table names, the timeouts of its zones, and the ports
// that every bridge has. It writes one transaction (two when it creates the bridge), and returns when ovs-vswitchd has
// applied it and every port has its number, or after 30 seconds with an error. It also restores the port numbers that
// pods' ports request. It returns a description of each change; none when the bridge was in sync. Other settings of the
// bridge stay, except controllers, spanning tree and limits of flow tables, which break forwarding. An
// *OptionalPortError means that all required parts are in sync; the changes are valid. Idempotent.
func (c *Client) EnsureBridge(ctx context.Context, want Bridge) (changed []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	changed, err = c.ensureBridge(ctx, want)
	if err != nil {
		return changed, fmt.Errorf("ensure bridge %s: %w", c.bridge, err)
	}
	return changed, nil
}

func (c *Client) ensureBridge(ctx context.Context, want Bridge) ([]string, error) {
	s, err := c.session(ctx)
	if err != nil {
		return nil, err
	}
	changed, created, err := c.repair(ctx, s, want)
	if created {
		var more []string
		more, _, err = c.repair(ctx, s, want)
		changed = append(changed, more...)
	}
	if err != nil {
		return changed, err
	}
	needed, optional := want.fixedPorts(c.bridge)
	for _, port := range needed {
		if err := c.waitTunnel(ctx, s, port); err != nil {
			return changed, fmt.Errorf("port %s: %w", port.Name, err)
		}
	}
	for _, port := range optional {
		err := c.waitTunnel(ctx, s, port)
		if errors.Is(err, ErrDisconnected) {
			return changed, fmt.Errorf("port %s: %w", port.Name, err)
		}
		if err != nil {
			return changed, &OptionalPortError{Port: port.Name, Err: err}
		}
	}
	return changed, nil
}

// repair writes the differences in one transaction. created reports that it created the bridge; the timeouts then need
// a second call.
func (c *Client) repair(ctx context.Context, s *session, want Bridge) (changed []string, created bool, err error) {
	v, err := s.snapshot(c.bridge)
	if err != nil {
		return nil, false, err
	}
	root, err := s.root()
	if err != nil {
		return nil, false, err
	}
	p := &changeSet{session: s, root: root, snap: v}
	if err := p.build(want); err != nil {
		return nil, false, err
	}
	if len(p.ops) > 0 {
		if err := c.apply(ctx, s, p.ops); err != nil {
			return nil, false, err
		}
	}
	return p.changed, v.bridge == nil, nil
}

// fixedPorts are the ports with a fixed number. The node does not need those of tunnel types with which it does not
// send.
func (b Bridge) fixedPorts(bridge string) (needed, optional []interfaceRow) {
	for _, port := range b.ports(bridge) {
		switch {
		case port.OFPortRequest == nil:
		case b.Tunnel == "" || port.Type == typeInternal || port.Name == b.Tunnel.PortName():
			needed = append(needed, port)
		default:
			optional = append(optional, port)
		}
	}
	return needed, optional
}

// apply commits the operations and waits until ovs-vswitchd has applied them: it then copies next_cfg to cur_cfg.
func (c *Client) apply(ctx context.Context, s *session, ops []ovsdb.Operation) error {
	root, err := s.root()
	if err != nil {
		return err
	}
	all := append(slices.Clone(ops),
		mutate(tableRoot, root.where(), *ovsdb.NewMutation("next_cfg", ovsdb.MutateOperationAdd, 1)),
		ovsdb.Operation{Op: ovsdb.OperationSelect, Table: tableRoot, Where: root.where(), Columns: []string{"next_cfg"}},
	)
	results, err := c.commit(ctx, all)
	if err != nil {
		return err
	}
	rows := results[len(results)-1].Rows
	if len(rows) != 1 {
		return errors.New("the Open_vSwitch row was replaced meanwhile; retry")
	}
	next, ok := rows[0]["next_cfg"].(float64)
	if !ok {
		return fmt.Errorf("next_cfg is %v, not a number", rows[0]["next_cfg"])
	}
	err = c.wait(ctx, s, keyRoot, func() (bool, error) {
		root, err = s.root()
		return err == nil && root.CurCfg >= int(next), err
	})
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return fmt.Errorf("ovs-vswitchd has not applied the change (is it running?): %w", err)
	}
	return err
}

// changeSet collects the operations of a repair.
type changeSet struct {
	session *session
	root    *rootRow
	snap    *dbSnapshot
	ops     []ovsdb.Operation
	changed []string
}

func (p *changeSet) change(ops []ovsdb.Operation, format string, args ...any) {
	p.ops = append(p.ops, ops...)
	p.changed = append(p.changed, fmt.Sprintf(format, args...))
}

func (p *changeSet) build(want Bridge) error {
	if want.Datapath != "system" && want.Datapath != datapathUserspace {
		return fmt.Errorf("invalid datapath %q; allowed: \"system\", \"netdev\"", want.Datapath)
	}
	if want.Tunnel != "" && !slices.Contains(model.Encapsulations, want.Tunnel) {
		return fmt.Errorf("invalid tunnel type %q; allowed: %v", want.Tunnel, model.Encapsulations)
	}
	for _, port := range want.ports(p.snap.name) {
		if on := p.snap.portsByName[port.Name].bridge; on != nil && on.Name != p.snap.name {
			return fmt.Errorf("a port named %s is on bridge %s; remove it there", port.Name, on.Name)
		}
	}
	if p.snap.bridge == nil {
		p.removeTimeouts(want)
		return p.createBridge(want)
	}
	if err := p.bridgeSettings(want); err != nil {
		return err
	}
	if err := p.tables(want.Tables); err != nil {
		return err
	}
	for _, port := range want.ports(p.snap.name) {
		if err := p.port(port); err != nil {
			return err
		}
	}
	if err := p.timeouts(want); err != nil {
		return err
	}
	return p.podPorts(want.Pods)
}

// createBridge adds the operations that create the bridge with its ports and tables.
func (p *changeSet) createBridge(want Bridge) error {
	b := bridgeRow{
		UUID:         rowName(),
		Name:         p.snap.name,
		DatapathType: want.Datapath,
		FailMode:     ptr(failSecure),
		Protocols:    protocols,
		OtherConfig:  bridgeConfig,
		ExternalIDs:  bridgeIDs(want),
		FlowTables:   map[int]string{},
	}
	var ops []ovsdb.Operation
	insert := func(row any) (err error) {
		var op []ovsdb.Operation
		op, err = p.session.db.Create(row)
		ops = append(ops, op...)
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(want.Tables)) {
		row := flowTableRow{UUID: rowName(), Name: ptr(want.Tables[id])}
		if err := insert(&row); err != nil {
			return fmt.Errorf("describe flow table %d: %w", id, err)
		}
		b.FlowTables[int(id)] = row.UUID
	}
	for _, iface := range want.ports(p.snap.name) {
		iface.UUID = rowName()
		port := portRow{UUID: rowName(), Name: iface.Name, Interfaces: []string{iface.UUID}}
		if err := insert(&iface); err != nil {
			return fmt.Errorf("describe interface %s: %w", iface.Name, err)
		}
		if err := insert(&port); err != nil {
			return fmt.Errorf("describe port %s: %w", port.Name, err)
		}
		b.Ports = append(b.Ports, port.UUID)
	}
	if err := insert(&b); err != nil {
		return fmt.Errorf("describe bridge: %w", err)
	}
	ops = append(ops, mutate(tableRoot, p.root.where(),
		*ovsdb.NewMutation("bridges", ovsdb.MutateOperationInsert, uuidSet(b.UUID))))
	p.change(ops, "bridge created")
	return nil
}

func bridgeIDs(want Bridge) map[string]string {
	ids := map[string]string{idBridge: "true"}
	if want.Version != "" {
		ids[idVersion] = want.Version
	}
	return ids
}

func (p *changeSet) bridgeSettings(want Bridge) error {
	b := p.snap.bridge
	var fields []any
	set := func(field any, format string, args ...any) {
		fields = append(fields, field)
		p.changed = append(p.changed, fmt.Sprintf(format, args...))
	}
	if b.DatapathType != want.Datapath {
		set(&b.DatapathType, "datapath_type: %q to %q", b.DatapathType, want.Datapath)
		b.DatapathType = want.Datapath
	}
	if deref(b.FailMode) != failSecure {
		set(&b.FailMode, "fail_mode: %q to %q", deref(b.FailMode), failSecure)
		b.FailMode = ptr(failSecure)
	}
	if !slices.Equal(slices.Sorted(slices.Values(b.Protocols)), protocols) {
		set(&b.Protocols, "protocols: %v to %v", b.Protocols, protocols)
		b.Protocols = protocols
	}
	if len(b.Controller) > 0 {
		set(&b.Controller, "controller: %d removed", len(b.Controller))
		b.Controller = nil
	}
	if b.STPEnable {
		set(&b.STPEnable, "stp_enable: off")
		b.STPEnable = false
	}
	if b.RSTPEnable {
		set(&b.RSTPEnable, "rstp_enable: off")
		b.RSTPEnable = false
	}
	if diff := missing(b.OtherConfig, bridgeConfig); len(diff) > 0 {
		set(&b.OtherConfig, "other_config: %s", strings.Join(diff, ", "))
		b.OtherConfig = merged(b.OtherConfig, bridgeConfig)
	}
	if diff := missing(b.ExternalIDs, bridgeIDs(want)); len(diff) > 0 {
		set(&b.ExternalIDs, "external_ids: %s", strings.Join(diff, ", "))
		b.ExternalIDs = merged(b.ExternalIDs, bridgeIDs(want))
	}
	if len(fields) == 0 {
		return nil
	}
	ops, err := p.session.db.Where(b).Update(b, fields...)
	if err != nil {
		return fmt.Errorf("describe the bridge's settings: %w", err)
	}
	p.ops = append(p.ops, ops...)
	return nil
}

// missing describes the keys of want that have lacks or has with another value.
func missing(have, want map[string]string) []string {
	var diff []string
	for _, k := range slices.Sorted(maps.Keys(want)) {
		if v, ok := have[k]; !ok || v != want[k] {
			diff = append(diff, fmt.Sprintf("%s: %q to %q", k, v, want[k]))
		}
	}
	return diff
}

func merged(have, want map[string]string) map[string]string {
	m := maps.Clone(have)
	if m == nil {
		m = map[string]string{}
	}
	maps.Copy(m, want)
	return m
}

func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}
