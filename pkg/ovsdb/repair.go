package ovsdb

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/ovn-org/libovsdb/ovsdb"

	"github.com/weft-cni/weft/pkg/model"
)

// dbSnapshot has the rows of the copy that an operation on the whole bridge needs. The rows are shallow clones.
type dbSnapshot struct {
	name   string
	bridge *bridgeRow // nil when it does not exist
	// ports and ifaces are those of all bridges, because names are unique among all.
	ports       map[string]*portRow      // by UUID
	ifaces      map[string]*interfaceRow // by UUID
	tables      map[string]*flowTableRow // by UUID
	bridges     map[string]*bridgeRow    // by UUID
	portsByName map[string]bridgePort    // by port name; index fills it
	// Conntrack configuration, by UUID:
	datapaths map[string]*datapathRow
	zones     map[string]*zoneRow
	timeouts  map[string]*timeoutPolicyRow
}

// bridgePort is a port and its bridge.
type bridgePort struct {
	port   *portRow
	bridge *bridgeRow
}

// podInterface is an interface that AddPort made, and its port.
type podInterface struct {
	port  *portRow
	iface *interfaceRow
}

func (s *session) snapshot(bridge string) (*dbSnapshot, error) {
	v := &dbSnapshot{name: bridge}
	var err error
	if v.bridges, err = rows[bridgeRow](s, tableBridge); err != nil {
		return nil, err
	}
	if v.ports, err = rows[portRow](s, tablePort); err != nil {
		return nil, err
	}
	if v.ifaces, err = rows[interfaceRow](s, tableInterface); err != nil {
		return nil, err
	}
	if v.tables, err = rows[flowTableRow](s, tableFlowTable); err != nil {
		return nil, err
	}
	if v.datapaths, err = rows[datapathRow](s, tableDatapath); err != nil {
		return nil, err
	}
	if v.zones, err = rows[zoneRow](s, tableZone); err != nil {
		return nil, err
	}
	if v.timeouts, err = rows[timeoutPolicyRow](s, tableTimeouts); err != nil {
		return nil, err
	}
	v.index()
	return v, nil
}

// index finds Weft's bridge, and the bridge of every port.
func (v *dbSnapshot) index() {
	v.portsByName = make(map[string]bridgePort, len(v.ports))
	for _, b := range v.bridges {
		if b.Name == v.name {
			v.bridge = b
		}
		for _, uuid := range b.Ports {
			if port := v.ports[uuid]; port != nil {
				v.portsByName[port.Name] = bridgePort{port, b}
			}
		}
	}
}

// podInterfaces are the interfaces on Weft's bridge that AddPort made.
func (v *dbSnapshot) podInterfaces() []podInterface {
	if v.bridge == nil {
		return nil
	}
	var list []podInterface
	for _, portUUID := range v.bridge.Ports {
		port := v.ports[portUUID]
		if port == nil {
			continue
		}
		for _, ifaceUUID := range port.Interfaces {
			if iface := v.ifaces[ifaceUUID]; iface != nil && isOurs(iface.ExternalIDs) {
				list = append(list, podInterface{port, iface})
			}
		}
	}
	return list
}

// tables repairs the names of the flow tables.
func (p *changeSet) tables(want map[uint8]string) error {
	b := p.snap.bridge
	refs := make(map[int]string, len(want))
	for _, id := range slices.Sorted(maps.Keys(want)) {
		name := want[id]
		uuid, ok := b.FlowTables[int(id)]
		row := p.snap.tables[uuid]
		if !ok || row == nil {
			row = &flowTableRow{UUID: rowName(), Name: ptr(name)}
			ops, err := p.session.db.Create(row)
			if err != nil {
				return fmt.Errorf("describe flow table %d: %w", id, err)
			}
			p.change(ops, "flow table %d: named %s", id, name)
		} else if deref(row.Name) != name || row.FlowLimit != nil {
			p.changed = append(p.changed,
				fmt.Sprintf("flow table %d: name %q to %q, no flow limit", id, deref(row.Name), name))
			row.Name, row.FlowLimit = ptr(name), nil
			ops, err := p.session.db.Where(row).Update(row, &row.Name, &row.FlowLimit)
			if err != nil {
				return fmt.Errorf("describe flow table %d: %w", id, err)
			}
			p.ops = append(p.ops, ops...)
		}
		refs[int(id)] = row.UUID
	}
	if maps.Equal(refs, b.FlowTables) {
		return nil
	}
	for _, id := range slices.Sorted(maps.Keys(b.FlowTables)) {
		if _, ok := refs[id]; !ok {
			p.changed = append(p.changed, fmt.Sprintf("flow table %d: settings removed", id))
		}
	}
	b.FlowTables = refs
	ops, err := p.session.db.Where(b).Update(b, &b.FlowTables)
	if err != nil {
		return fmt.Errorf("describe the flow tables: %w", err)
	}
	p.ops = append(p.ops, ops...)
	return nil
}

// port repairs one of the ports that every bridge has.
func (p *changeSet) port(want interfaceRow) error {
	port := p.snap.portsByName[want.Name].port
	if port == nil {
		return p.recreate(nil, want, "created")
	}
	if len(port.Interfaces) == 1 {
		if iface := p.snap.ifaces[port.Interfaces[0]]; iface != nil && iface.Name == want.Name {
			return p.iface(port, iface, want)
		}
	}
	return p.recreate(port, want, "had other interfaces")
}

// recreate replaces the port by a new one.
func (p *changeSet) recreate(port *portRow, want interfaceRow, why string) error {
	if port != nil {
		p.ops = append(p.ops, removeFromBridge(p.snap.name, port.UUID))
	}
	ops, err := p.session.insertPort(p.snap.name, want)
	if err != nil {
		return err
	}
	p.change(ops, "port %s: %s", want.Name, why)
	return nil
}

// iface repairs the columns of an Interface row that Weft sets.
func (p *changeSet) iface(port *portRow, have *interfaceRow, want interfaceRow) error {
	var diff []string
	if have.Type != want.Type {
		diff = append(diff, fmt.Sprintf("type %q to %q", have.Type, want.Type))
	}
	if !maps.Equal(have.Options, want.Options) {
		diff = append(diff, fmt.Sprintf("options %v to %v", have.Options, want.Options))
	}
	if !equal(have.OFPortRequest, want.OFPortRequest) {
		diff = append(diff, fmt.Sprintf("ofport_request %d to %d", deref(have.OFPortRequest), deref(want.OFPortRequest)))
	}
	if len(diff) > 0 {
		// ovs-vswitchd recreates the port for these changes anyway. In the old row its new status could be lost: it
		// does not write a value that it believes is already there, while its status of the damaged port is still on
		// the way to the database.
		return p.recreate(port, want, strings.Join(diff, ", "))
	}
	var fields []any
	if !equal(have.MAC, want.MAC) {
		diff = append(diff, fmt.Sprintf("mac %q to %q", deref(have.MAC), deref(want.MAC)))
		have.MAC = want.MAC
		fields = append(fields, &have.MAC)
	}
	if !equal(have.MTURequest, want.MTURequest) {
		diff = append(diff, fmt.Sprintf("mtu_request %d to %d", deref(have.MTURequest), deref(want.MTURequest)))
		have.MTURequest = want.MTURequest
		fields = append(fields, &have.MTURequest)
	}
	// Weft polices no port: with the userspace datapath policing has no effect on a veth, and with the kernel datapath
	// the bandwidth plugin limits; see docs/cni.md.
	if have.PolicingRate != want.PolicingRate || have.PolicingBurst != want.PolicingBurst {
		diff = append(diff, fmt.Sprintf("ingress_policing_rate %d to %d, burst %d to %d",
			have.PolicingRate, want.PolicingRate, have.PolicingBurst, want.PolicingBurst))
		have.PolicingRate, have.PolicingBurst = want.PolicingRate, want.PolicingBurst
		fields = append(fields, &have.PolicingRate, &have.PolicingBurst)
	}
	if want.ExternalIDs != nil && !maps.Equal(have.ExternalIDs, want.ExternalIDs) {
		diff = append(diff, fmt.Sprintf("external_ids %v to %v", have.ExternalIDs, want.ExternalIDs))
		have.ExternalIDs = want.ExternalIDs
		fields = append(fields, &have.ExternalIDs)
	}
	if len(fields) == 0 {
		return nil
	}
	ops, err := p.session.db.Where(have).Update(have, fields...)
	if err != nil {
		return fmt.Errorf("describe interface %s: %w", want.Name, err)
	}
	p.change(ops, "port %s: %s", want.Name, strings.Join(diff, ", "))
	return nil
}

// podPorts repairs the columns that AddPort set on pods' ports; of known ones also the record. Unknown ports with an
// invalid record are left to the caller, who gets them from Attachments.
func (p *changeSet) podPorts(known map[string]model.Attachment) error {
	for _, pod := range p.snap.podInterfaces() {
		if _, ok := known[pod.iface.Name]; ok {
			continue
		}
		a, err := decodeAttachment(pod.iface.Name, pod.iface.ExternalIDs)
		if err != nil {
			continue
		}
		if err := p.podPort(pod, a); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(known)) {
		on := p.snap.portsByName[name]
		if on.bridge == nil || on.bridge.Name != p.snap.name || len(on.port.Interfaces) != 1 {
			continue
		}
		if iface := p.snap.ifaces[on.port.Interfaces[0]]; iface != nil && iface.Name == name {
			if err := p.podPort(podInterface{on.port, iface}, known[name]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *changeSet) podPort(pod podInterface, a model.Attachment) error {
	iface := pod.iface
	return p.iface(pod.port, iface, interfaceRow{
		Name:          iface.Name,
		Options:       iface.Options,
		OFPortRequest: ptr(int(a.OFPort)),
		MAC:           iface.MAC,
		MTURequest:    iface.MTURequest,
		ExternalIDs:   withRecord(iface.ExternalIDs, a),
	})
}

// withRecord replaces Weft's external_ids by the attachment's record.
func withRecord(ids map[string]string, a model.Attachment) map[string]string {
	m := encodeAttachment(a)
	for k, v := range ids {
		if !strings.HasPrefix(k, idPrefix) {
			m[k] = v
		}
	}
	return m
}

func equal[T comparable](a, b *T) bool {
	return a == b || a != nil && b != nil && *a == *b
}

// flowRestoreWait is the key of Open_vSwitch's other_config that keeps ovs-vswitchd from forwarding until it is
// removed.
const flowRestoreWait = "flow-restore-wait"

// FlowRestoreWait reports whether flow-restore-wait is set.
func (c *Client) FlowRestoreWait(ctx context.Context) (bool, error) {
	s, err := c.session(ctx)
	if err != nil {
		return false, fmt.Errorf("read %s: %w", flowRestoreWait, err)
	}
	root, err := s.root()
	if err != nil {
		return false, fmt.Errorf("read %s: %w", flowRestoreWait, err)
	}
	return root.OtherConfig[flowRestoreWait] == "true", nil
}

// SetFlowRestoreWait sets or clears flow-restore-wait and returns when ovs-vswitchd has applied it. It affects all
// bridges of the node. Idempotent.
func (c *Client) SetFlowRestoreWait(ctx context.Context, on bool) error {
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	if now, err := c.FlowRestoreWait(ctx); err != nil || now == on {
		return err
	}
	s, err := c.session(ctx)
	if err != nil {
		return fmt.Errorf("set %s: %w", flowRestoreWait, err)
	}
	root, err := s.root()
	if err != nil {
		return fmt.Errorf("set %s: %w", flowRestoreWait, err)
	}
	remove := ovsdb.OvsSet{GoSet: []any{flowRestoreWait}}
	mutations := []ovsdb.Mutation{*ovsdb.NewMutation("other_config", ovsdb.MutateOperationDelete, remove)}
	if on {
		add := ovsdb.OvsMap{GoMap: map[any]any{flowRestoreWait: "true"}}
		mutations = append(mutations, *ovsdb.NewMutation("other_config", ovsdb.MutateOperationInsert, add))
	}
	if err := c.apply(ctx, s, []ovsdb.Operation{mutate(tableRoot, root.where(), mutations...)}); err != nil {
		return fmt.Errorf("set %s to %t: %w", flowRestoreWait, on, err)
	}
	return nil
}
