package ovsdb

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/ovn-org/libovsdb/ovsdb"
)

// datapathUserspace is the type of the userspace datapath, and its key in Open_vSwitch.datapaths.
const datapathUserspace = "netdev"

// zoneTimeouts are how many seconds the userspace datapath keeps a connection after a packet of it. The comments name
// the state of lib/conntrack-private.h that reads each key (tm_to_ct_dpif_tp in lib/conntrack-tp.c, the same from
// Open vSwitch 2.14 to 3.7) and the default of Open vSwitch. None is shorter than Linux's for the same connection:
// with less than the TIME_WAIT of a peer (60 seconds on Linux), a client port that is used again for another Service
// meets a socket whose acknowledgment is invalid here, and cannot connect. Keys that only the kernel's datapath reads
// are absent. Open vSwitch applies no policy to protocols other than TCP, UDP and ICMP.
//
// The kernel's datapath has no policy: zones without one have the timeouts of the node's own sysctls
// (nf_conntrack_*_timeout*).
var zoneTimeouts = map[string]int{
	"tcp_syn_sent":    120,    // TCP_FIRST_PACKET, 30. Linux: SYN_SENT 120.
	"tcp_syn_recv":    300,    // TCP_OPENING, 30. Linux: SYN_RECV 60, and 300 for a connection that was found after its handshake.
	"tcp_established": 432000, // TCP_ESTABLISHED, 86400. Linux: ESTABLISHED 432000.
	"tcp_fin_wait":    900,    // TCP_CLOSING, one side has sent a FIN, 900. Linux: FIN_WAIT 120, CLOSE_WAIT 60.
	"tcp_time_wait":   120,    // TCP_FIN_WAIT, both sides have sent a FIN, 45. Linux: TIME_WAIT 120, LAST_ACK 30.
	"tcp_close":       120,    // TCP_CLOSED, both FINs are acknowledged or there was a reset, 30. Linux: TIME_WAIT 120, CLOSE 10.
	"udp_first":       60,     // OTHER_FIRST, 60. Linux: UDP 30.
	"udp_single":      60,     // OTHER_MULTIPLE, all from one side, 60. Linux: UDP 30.
	"udp_multiple":    120,    // OTHER_BIDIR, 30. Linux: UDP 120.
	"icmp_first":      60,     // ICMP_FIRST, 60. Linux: ICMP 30.
	"icmp_reply":      30,     // ICMP_REPLY, 30. Linux: ICMP 30.
}

// timeouts are the zone's.
func (z Zone) timeouts() map[string]int {
	if z.Keep == 0 {
		return zoneTimeouts
	}
	same := make(map[string]int, len(zoneTimeouts))
	for key := range zoneTimeouts {
		same[key] = int(z.Keep / time.Second)
	}
	return same
}

// ourRow marks rows of the tables below as ours, for people who look at them.
var ourRow = map[string]string{idBridge: "true"}

// timeouts gives the connection tracking zones of the userspace datapath our timeouts. A foreign Datapath row is
// used; other zones, and foreign rows in the place of ours, are not written to.
func (p *plan) timeouts(want Bridge) error {
	if want.Datapath != datapathUserspace {
		return nil
	}
	dp := p.view.datapaths[p.root.Datapaths[datapathUserspace]]
	var wrong []uint16
	keep := map[time.Duration]string{} // the new policies
	for _, zone := range want.Zones {
		if dp == nil || !p.view.timeoutsRight(dp.CTZones[int(zone.Number)], zone) {
			wrong = append(wrong, zone.Number)
			keep[zone.Keep] = ""
		}
	}
	if len(wrong) == 0 {
		return nil
	}
	var ops []ovsdb.Operation
	insert := func(row any) error {
		op, err := p.session.db.Create(row)
		if err != nil {
			return fmt.Errorf("describe the timeouts of zones %v: %w", wrong, err)
		}
		ops = append(ops, op...)
		return nil
	}
	for _, d := range slices.Sorted(maps.Keys(keep)) {
		policy := timeoutPolicyRow{UUID: rowName(), Timeouts: Zone{Keep: d}.timeouts(), ExternalIDs: ourRow}
		if err := insert(&policy); err != nil {
			return err
		}
		keep[d] = policy.UUID
	}
	zones, numbers := map[int]string{}, ovsdb.OvsSet{}
	for _, zone := range want.Zones {
		if !slices.Contains(wrong, zone.Number) {
			continue
		}
		policy := keep[zone.Keep]
		row := zoneRow{UUID: rowName(), TimeoutPolicy: &policy, ExternalIDs: ourRow}
		if err := insert(&row); err != nil {
			return err
		}
		zones[int(zone.Number)] = row.UUID
		numbers.GoSet = append(numbers.GoSet, int(zone.Number))
	}
	if dp == nil {
		row := datapathRow{UUID: rowName(), CTZones: zones, ExternalIDs: ourRow}
		if err := insert(&row); err != nil {
			return err
		}
		ops = append(ops, mutate(tableRoot, p.root.where(),
			*ovsdb.NewMutation("datapaths", ovsdb.MutateOperationInsert, ovsdb.OvsMap{GoMap: map[any]any{datapathUserspace: ovsdb.UUID{GoUUID: row.UUID}}})))
	} else {
		refs := ovsdb.OvsMap{GoMap: map[any]any{}}
		for zone, uuid := range zones {
			refs.GoMap[zone] = ovsdb.UUID{GoUUID: uuid}
		}
		ops = append(ops, mutate(tableDatapath, where("_uuid", ovsdb.UUID{GoUUID: dp.UUID}),
			*ovsdb.NewMutation("ct_zones", ovsdb.MutateOperationDelete, numbers), *ovsdb.NewMutation("ct_zones", ovsdb.MutateOperationInsert, refs)))
	}
	p.change(ops, "datapath %s: timeouts of conntrack zones %v", datapathUserspace, wrong)
	return nil
}

// timeoutsRight says whether a CT_Zone row has the timeouts of our zone.
func (v *view) timeoutsRight(uuid string, zone Zone) bool {
	row := v.zones[uuid]
	if row == nil || row.TimeoutPolicy == nil {
		return false
	}
	policy := v.timeouts[*row.TimeoutPolicy]
	return policy != nil && maps.Equal(policy.Timeouts, zone.timeouts())
}

// forgetTimeouts removes our zones from the Datapath row while there is no bridge. A datapath loses its timeouts with its
// last bridge, and ovs-vswitchd gives the next datapath only those that are new in the database.
func (p *plan) forgetTimeouts(want Bridge) {
	dp := p.view.datapaths[p.root.Datapaths[datapathUserspace]]
	if dp == nil || want.Datapath != datapathUserspace {
		return
	}
	numbers := ovsdb.OvsSet{}
	for _, zone := range want.Zones {
		if _, ok := dp.CTZones[int(zone.Number)]; ok {
			numbers.GoSet = append(numbers.GoSet, int(zone.Number))
		}
	}
	if len(numbers.GoSet) > 0 {
		p.ops = append(p.ops, mutate(tableDatapath, where("_uuid", ovsdb.UUID{GoUUID: dp.UUID}), *ovsdb.NewMutation("ct_zones", ovsdb.MutateOperationDelete, numbers)))
	}
}
