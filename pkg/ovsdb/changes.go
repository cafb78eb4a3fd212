package ovsdb

import (
	"maps"
	"reflect"

	dbmodel "github.com/ovn-org/libovsdb/model"
)

// changed runs on libovsdb's event goroutine, after its copy was updated. old is nil when the row is new, and row is nil
// when it is gone.
func (c *Client) changed(old, row dbmodel.Model) {
	some := row
	if some == nil {
		some = old
	}
	if key, ok := waitKey(some); ok {
		c.waiters.wake(key)
	}
	if c.concernsUs(old, row) {
		notify(c.changes)
	}
}

// concernsUs leaves out what changes with every transaction of anybody, what comes with every pod, and other bridges.
// Ports and interfaces do not say which bridge they are on, so those of all bridges count.
func (c *Client) concernsUs(old, row dbmodel.Model) bool {
	switch r := row.(type) {
	case nil:
		return !c.removedByUs(old)
	case *rootRow:
		o, ok := old.(*rootRow)
		return !ok || o.OtherConfig[flowRestoreWait] != r.OtherConfig[flowRestoreWait] || !maps.Equal(o.Datapaths, r.Datapaths)
	case *bridgeRow:
		o, ok := old.(*bridgeRow)
		return r.Name == c.bridge && (!ok || !sameButPorts(*o, *r))
	case *portRow:
		return old != nil // an additional port breaks nothing; when it is one of ours, its interface counts
	case *interfaceRow:
		if !isOurs(r.ExternalIDs) {
			return true
		}
		o, ok := old.(*interfaceRow)
		return ok && !sameSettings(*o, *r)
	}
	return true
}

// removedByUs tells whether RemovePort removed the row.
func (c *Client) removedByUs(old dbmodel.Model) bool {
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

func (c *Client) ownRemoval(portUUID string, iface *interfaceRow) {
	c.removing.Store(portUUID, nil)
	if iface != nil {
		c.removing.Store(iface.UUID, nil)
	}
}

func (c *Client) forgetRemoval(portUUID string, iface *interfaceRow) {
	c.removing.Delete(portUUID)
	if iface != nil {
		c.removing.Delete(iface.UUID)
	}
}

// sameButPorts ignores the ports: one that was removed is a row that is gone, which counts by itself. It also ignores
// what SetLastIPs writes.
func sameButPorts(a, b bridgeRow) bool {
	a.Ports, b.Ports = nil, nil
	a.ExternalIDs, b.ExternalIDs = withoutLastIPs(a.ExternalIDs), withoutLastIPs(b.ExternalIDs)
	return reflect.DeepEqual(a, b)
}

// sameSettings ignores what ovs-vswitchd says of the interface.
func sameSettings(a, b interfaceRow) bool {
	a.OFPort, b.OFPort, a.Error, b.Error = nil, nil, nil, nil
	return reflect.DeepEqual(a, b)
}
