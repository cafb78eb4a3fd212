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

// zoneTimeouts are the timeouts of connections on the userspace datapath, in seconds after the last packet. The
// comments name the state of lib/conntrack-private.h that uses each key (tm_to_ct_dpif_tp in lib/conntrack-tp.c, the
// same from Open vSwitch 2.14 to 3.7) and Open vSwitch's default. None is shorter than Linux's for the same connection:
// with less than the TIME_WAIT of a peer (60 seconds on Linux), a client port that is reused for another Service meets
// a socket whose acknowledgment is invalid here, and cannot connect. Keys that only the kernel datapath uses are
// absent. Open vSwitch applies no policy to protocols other than TCP, UDP and ICMP.
//
// The kernel datapath gets no policy: zones without one use the timeouts of the node's sysctls
// (nf_conntrack_*_timeout*).
var zoneTimeouts = map[string]int{
	"tcp_syn_sent":    120,    // TCP_FIRST_PACKET, 30. Linux: SYN_SENT 120.
	"tcp_syn_recv":    300,    // TCP_OPENING, 30. Linux: SYN_RECV 60, picked up after the handshake 300.
	"tcp_established": 432000, // TCP_ESTABLISHED, 86400. Linux: ESTABLISHED 432000.
	"tcp_fin_wait":    900,    // TCP_CLOSING, one side has sent a FIN, 900. Linux: FIN_WAIT 120, CLOSE_WAIT 60.
	"tcp_time_wait":   120,    // TCP_FIN_WAIT, both sides have sent a FIN, 45. Linux: TIME_WAIT 120, LAST_ACK 30.
	"tcp_close":       120,    // TCP_CLOSED, both FINs acknowledged or reset, 30. Linux: TIME_WAIT 120, CLOSE 10.
	"udp_first":       60,     // OTHER_FIRST, 60. Linux: UDP 30.
	"udp_single":      60,     // OTHER_MULTIPLE, all from one side, 60. Linux: UDP 30.
	"udp_multiple":    120,    // OTHER_BIDIR, 30. Linux: UDP 120.
	"icmp_first":      60,     // ICMP_FIRST, 60. Linux: ICMP 30.
	"icmp_reply":      30,     // ICMP_REPLY, 30. Linux: ICMP 30.
}

// timeouts are the zone's timeouts.
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

// ourRow marks Weft's rows of the tables below, for administrators.
var ourRow = map[string]string{idBridge: "true"}

// timeouts sets the timeouts of Weft's conntrack zones on the userspace datapath. It uses an existing Datapath row, and
// does not write to other zones, nor to foreign rows that its zones refer to.
func (p *changeSet) timeouts(want Bridge) error {
	if want.Datapath != datapathUserspace {
		return nil
	}
	dp := p.snap.datapaths[p.root.Datapaths[datapathUserspace]]
	var outOfSync []uint16
	keep := map[time.Duration]string{} // the new policies
	for _, zone := range want.Zones {
		if dp == nil || !p.snap.timeoutsInSync(dp.CTZones[int(zone.Number)], zone) {
			outOfSync = append(outOfSync, zone.Number)
			keep[zone.Keep] = ""
		}
	}
	if len(outOfSync) == 0 {
		return nil
	}
	var ops []ovsdb.Operation
	insert := func(row any) error {
		op, err := p.session.db.Create(row)
		if err != nil {
			return fmt.Errorf("describe the timeouts of zones %v: %w", outOfSync, err)
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
		if !slices.Contains(outOfSync, zone.Number) {
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
		dps := ovsdb.OvsMap{GoMap: map[any]any{datapathUserspace: ovsdb.UUID{GoUUID: row.UUID}}}
		ops = append(ops, mutate(tableRoot, p.root.where(),
			*ovsdb.NewMutation("datapaths", ovsdb.MutateOperationInsert, dps)))
	} else {
		refs := ovsdb.OvsMap{GoMap: map[any]any{}}
		for zone, uuid := range zones {
			refs.GoMap[zone] = ovsdb.UUID{GoUUID: uuid}
		}
		ops = append(ops, mutate(tableDatapath, where("_uuid", ovsdb.UUID{GoUUID: dp.UUID}),
			*ovsdb.NewMutation("ct_zones", ovsdb.MutateOperationDelete, numbers),
			*ovsdb.NewMutation("ct_zones", ovsdb.MutateOperationInsert, refs)))
	}
	p.change(ops, "datapath %s: timeouts of conntrack zones %v", datapathUserspace, outOfSync)
	return nil
}

// timeoutsInSync reports whether a CT_Zone row has the timeouts of the zone.
func (v *dbSnapshot) timeoutsInSync(uuid string, zone Zone) bool {
	row := v.zones[uuid]
	if row == nil || row.TimeoutPolicy == nil {
		return false
	}
	policy := v.timeouts[*row.TimeoutPolicy]
	return policy != nil && maps.Equal(policy.Timeouts, zone.timeouts())
}

// removeTimeouts removes Weft's zones from the Datapath row while the bridge does not exist. A datapath loses its
// timeouts with its last bridge, and ovs-vswitchd gives the next datapath only those that are new in the database.
func (p *changeSet) removeTimeouts(want Bridge) {
	dp := p.snap.datapaths[p.root.Datapaths[datapathUserspace]]
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
		p.ops = append(p.ops, mutate(tableDatapath, where("_uuid", ovsdb.UUID{GoUUID: dp.UUID}),
			*ovsdb.NewMutation("ct_zones", ovsdb.MutateOperationDelete, numbers)))
	}
}
