package ovsdb

import (
	"maps"
	"reflect"

	dbmodel "github.com/ovn-org/libovsdb/model"
)

// onRowChange runs on libovsdb's event goroutine after its copy was updated. old is nil for a new row, and row is nil
// for a deleted one.
func (c *Client) onRowChange(old, row dbmodel.Model) {
	some := row
	if some == nil {
		some = old
	}
	if key, ok := waitKey(some); ok {
		c.waiters.wake(key)
	}
	if c.needsRepair(old, row) {
		notify(c.changes)
	}
}

// needsRepair filters out the changes of every transaction, those of Weft's own AddPort and RemovePort, and other
// bridges. Ports and interfaces do not name their bridge, so those of all bridges count.
func (c *Client) needsRepair(old, row dbmodel.Model) bool {
	switch r := row.(type) {
	case nil:
		return !c.ownRemoval(old)
	case *rootRow:
		o, ok := old.(*rootRow)
		return !ok || o.OtherConfig[flowRestoreWait] != r.OtherConfig[flowRestoreWait] ||
			!maps.Equal(o.Datapaths, r.Datapaths)
	case *bridgeRow:
		o, ok := old.(*bridgeRow)
		return r.Name == c.bridge && (!ok || !sameButPorts(*o, *r))
	case *portRow:
		return old != nil // an additional port breaks nothing; if it is one of Weft's, its interface counts
	case *interfaceRow:
		if !isOurs(r.ExternalIDs) {
			return true
		}
		o, ok := old.(*interfaceRow)
		return ok && !sameSettings(*o, *r)
	}
	return true
}

// ownRemoval reports whether RemovePort deleted the row, or the row is another bridge.
func (c *Client) ownRemoval(old dbmodel.Model) bool {
	var uuid string
	switch o := old.(type) {
	case *bridgeRow:
		return o.Name != c.bridge
	case *portRow:
		uuid = o.UUID
	case *interfaceRow:
		uuid = o.UUID
	}
	_, ours := c.removing.LoadAndDelete(uuid)
	return ours
}

func (c *Client) markOwnRemoval(portUUID string, iface *interfaceRow) {
	c.removing.Store(portUUID, nil)
	if iface != nil {
		c.removing.Store(iface.UUID, nil)
	}
}

func (c *Client) unmarkOwnRemoval(portUUID string, iface *interfaceRow) {
	c.removing.Delete(portUUID)
	if iface != nil {
		c.removing.Delete(iface.UUID)
	}
}

// sameButPorts ignores the ports, because a removed port is a deleted row, which counts by itself, and the addresses
// that SetLastIPs writes.
func sameButPorts(a, b bridgeRow) bool {
	a.Ports, b.Ports = nil, nil
	a.ExternalIDs, b.ExternalIDs = withoutLastIPs(a.ExternalIDs), withoutLastIPs(b.ExternalIDs)
	return reflect.DeepEqual(a, b)
}

// sameSettings ignores the columns that ovs-vswitchd writes.
func sameSettings(a, b interfaceRow) bool {
	a.OFPort, b.OFPort, a.Error, b.Error = nil, nil, nil, nil
	return reflect.DeepEqual(a, b)
}
