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

// view is the part of the database's copy that an operation on the whole bridge looks at. The rows are shallow clones.
type view struct {
	name   string
	bridge *bridgeRow // nil when there is none
	// ports and ifaces are all there are, of any bridge, because their names are unique among all.
	ports   map[string]*portRow      // by UUID
	ifaces  map[string]*interfaceRow // by UUID
	tables  map[string]*flowTableRow // by UUID
	bridges map[string]*bridgeRow    // by UUID
	named   map[string]bridgePort    // by the port's name; index fills it
	// Of connection tracking, by UUID:
	datapaths map[string]*datapathRow
	zones     map[string]*zoneRow
	timeouts  map[string]*timeoutPolicyRow
}

// bridgePort is a port and the bridge it is on.
type bridgePort struct {
	port   *portRow
	bridge *bridgeRow
}

// podInterface is an interface that AddPort made, and its port.
type podInterface struct {
	port  *portRow
	iface *interfaceRow
}

func (s *session) view(bridge string) (*view, error) {
	v := &view{name: bridge}
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

// index finds our bridge and the bridge of every port.
func (v *view) index() {
	v.named = make(map[string]bridgePort, len(v.ports))
	for _, b := range v.bridges {
		if b.Name == v.name {
			v.bridge = b
		}
		for _, uuid := range b.Ports {
			if port := v.ports[uuid]; port != nil {
				v.named[port.Name] = bridgePort{port, b}
			}
		}
	}
}

// podInterfaces are the interfaces on the bridge that AddPort made.
func (v *view) podInterfaces() []podInterface {
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
func (p *plan) tables(want map[uint8]string) error {
	b := p.view.bridge
	refs := make(map[int]string, len(want))
	for _, id := range slices.Sorted(maps.Keys(want)) {
		name := want[id]
		uuid, ok := b.FlowTables[int(id)]
		row := p.view.tables[uuid]
		if !ok || row == nil {
			row = &flowTableRow{UUID: rowName(), Name: ptr(name)}
			ops, err := p.session.db.Create(row)
			if err != nil {
				return fmt.Errorf("describe flow table %d: %w", id, err)
			}
			p.change(ops, "flow table %d: named %s", id, name)
		} else if deref(row.Name) != name || row.FlowLimit != nil {
			p.changed = append(p.changed, fmt.Sprintf("flow table %d: name %q to %q, no flow limit", id, deref(row.Name), name))
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

// port repairs one of the ports that every node's bridge has.
func (p *plan) port(want interfaceRow) error {
	port := p.view.named[want.Name].port
	if port == nil {
		return p.replace(nil, want, "created")
	}
	if len(port.Interfaces) == 1 {
		if iface := p.view.ifaces[port.Interfaces[0]]; iface != nil && iface.Name == want.Name {
			return p.iface(port, iface, want)
		}
	}
	return p.replace(port, want, "had other interfaces")
}

// replace makes the port anew.
func (p *plan) replace(port *portRow, want interfaceRow, why string) error {
	if port != nil {
		p.ops = append(p.ops, removeFromBridge(p.view.name, port.UUID))
	}
	ops, err := p.session.insertPort(p.view.name, want)
	if err != nil {
		return err
	}
	p.change(ops, "port %s: %s", want.Name, why)
	return nil
}

// iface repairs the columns of an Interface row that we set.
func (p *plan) iface(port *portRow, have *interfaceRow, want interfaceRow) error {
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
		// With these, ovs-vswitchd makes the port anew in any case, and in an old row its verdict may be lost: it does not
		// write what it believes is there already, while its verdict on the damage is still on the way to the database.
		return p.replace(port, want, strings.Join(diff, ", "))
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
	// Weft polices no port: with the userspace datapath that has no effect on a veth, and with the kernel's the bandwidth
	// plugin limits; see docs/cni.md.
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

// podPorts repairs what AddPort set on pods' ports: of those that the caller knows, also the record. Other ports whose
// record is damaged are left to the caller, who reads them through Attachments.
func (p *plan) podPorts(known map[string]model.Attachment) error {
	for _, pod := range p.view.podInterfaces() {
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
		on := p.view.named[name]
		if on.bridge == nil || on.bridge.Name != p.view.name || len(on.port.Interfaces) != 1 {
			continue
		}
		if iface := p.view.ifaces[on.port.Interfaces[0]]; iface != nil && iface.Name == name {
			if err := p.podPort(podInterface{on.port, iface}, known[name]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *plan) podPort(pod podInterface, a model.Attachment) error {
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

// withRecord replaces what of the external_ids is ours by the attachment's record.
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

// flowRestoreWait is the key of Open_vSwitch's other_config that keeps ovs-vswitchd from forwarding anything until it is
// removed.
const flowRestoreWait = "flow-restore-wait"

// FlowRestoreWait tells whether ovs-vswitchd is told to forward nothing until the flows are restored.
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

// SetFlowRestoreWait sets or clears it and returns when ovs-vswitchd knows. It concerns all bridges of the node.
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
	mutations := []ovsdb.Mutation{*ovsdb.NewMutation("other_config", ovsdb.MutateOperationDelete, ovsdb.OvsSet{GoSet: []any{flowRestoreWait}})}
	if on {
		mutations = append(mutations, *ovsdb.NewMutation("other_config", ovsdb.MutateOperationInsert, ovsdb.OvsMap{GoMap: map[any]any{flowRestoreWait: "true"}}))
	}
	if err := c.apply(ctx, s, []ovsdb.Operation{mutate(tableRoot, root.where(), mutations...)}); err != nil {
		return fmt.Errorf("set %s to %t: %w", flowRestoreWait, on, err)
	}
	return nil
}
