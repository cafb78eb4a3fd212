package ovsdb

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ovn-org/libovsdb/ovsdb"

	"github.com/weft-cni/weft/pkg/model"
)

// ErrPortConflict says that a port of that name exists and belongs to somebody or something else.
var ErrPortConflict = errors.New("port name is taken")

// removeTimeout bounds the removal of a port that could not be added.
const removeTimeout = 5 * time.Second

// BadPort is a pod's port on our bridge whose record cannot be read.
type BadPort struct {
	Name string
	Err  error
}

func (b BadPort) Error() string { return fmt.Sprintf("port %s: %v", b.Name, b.Err) }

// AddPort adds the pod's port to the bridge and returns when ovs-vswitchd has given it the requested number. Adding the
// same attachment again only waits. When it fails it removes what it added; only after ErrDisconnected something may be
// left, which the same call again, or RemovePort, takes up.
func (c *Client) AddPort(ctx context.Context, a model.Attachment) error {
	if err := c.addPort(ctx, a); err != nil {
		return fmt.Errorf("add port %s of pod %s to bridge %s: %w", a.HostIfName, a.Pod, c.bridge, err)
	}
	return nil
}

func (c *Client) addPort(ctx context.Context, a model.Attachment) error {
	if err := checkAttachment(a); err != nil {
		return err
	}
	s, err := c.session(ctx)
	if err != nil {
		return err
	}
	if row, err := s.interfaceByName(ctx, a.HostIfName); err != nil {
		return err
	} else if row != nil {
		return c.joinPort(ctx, s, row, a)
	}
	ops, err := s.insertPort(c.bridge, interfaceRow{
		Name:          a.HostIfName,
		OFPortRequest: ptr(int(a.OFPort)),
		ExternalIDs:   encodeAttachment(a),
	})
	if err != nil {
		return err
	}
	results, err := c.commit(ctx, ops)
	var refused *refusedError
	if errors.As(err, &refused) {
		// Somebody may have added a port of that name in the meantime.
		if row, _ := s.interfaceByName(ctx, a.HostIfName); row != nil {
			return c.joinPort(ctx, s, row, a)
		}
		return err
	}
	if err == nil && results[len(results)-1].Count == 0 {
		// The inserted rows are gone already: OVSDB drops a port that no bridge refers to.
		return errors.New("the bridge does not exist (EnsureBridge makes it)")
	}
	if err == nil {
		err = c.waitPort(ctx, s, a.HostIfName, a.OFPort)
	}
	if err == nil {
		return nil
	}
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	if cerr := c.removeAttachment(clean, a); cerr != nil {
		err = fmt.Errorf("%w (and it could not be removed again: %w)", err, cerr)
	}
	return err
}

// joinPort waits for a port that is in the database already, if it is the same attachment's.
func (c *Client) joinPort(ctx context.Context, s *session, row *interfaceRow, a model.Attachment) error {
	if err := sameAttachment(row, a); err != nil {
		return err
	}
	return c.waitPort(ctx, s, a.HostIfName, a.OFPort)
}

func sameAttachment(row *interfaceRow, a model.Attachment) error {
	if !isOurs(row.ExternalIDs) {
		return fmt.Errorf("%w by a port that is not a pod's", ErrPortConflict)
	}
	have, err := decodeAttachment(row.Name, row.ExternalIDs)
	if err != nil {
		return fmt.Errorf("%w by a port whose record is damaged: %w", ErrPortConflict, err)
	}
	if have.Key() != a.Key() || have.Pod != a.Pod || have.OFPort != a.OFPort || have.MAC != a.MAC || !slices.Equal(have.IPs, a.IPs) {
		return fmt.Errorf("%w by another attachment: pod %s, container %s, port number %d, addresses %v", ErrPortConflict, have.Pod, have.Key(), have.OFPort, have.IPs)
	}
	return nil
}

// insertPort returns the operations that add a port with one interface to the bridge.
func (s *session) insertPort(bridge string, iface interfaceRow) ([]ovsdb.Operation, error) {
	iface.UUID = rowName()
	port := portRow{UUID: rowName(), Name: iface.Name, Interfaces: []string{iface.UUID}}
	ops, err := s.db.Create(&iface, &port)
	if err != nil {
		return nil, fmt.Errorf("describe port %s: %w", iface.Name, err)
	}
	return append(ops, mutate(tableBridge, where("name", bridge), *ovsdb.NewMutation("ports", ovsdb.MutateOperationInsert, uuidSet(port.UUID)))), nil
}

// waitPort waits until ovs-vswitchd has added the interface, and checks its number.
func (c *Client) waitPort(ctx context.Context, s *session, name string, want uint32) error {
	err := c.wait(ctx, s, name, func() (bool, error) {
		row, err := s.interfaceByName(ctx, name)
		switch {
		case err != nil:
			return false, err
		case row == nil:
			return false, errors.New("the port was removed by somebody else")
		case row.Error != nil:
			return false, fmt.Errorf("ovs-vswitchd: %s", *row.Error)
		case row.OFPort == nil:
			return false, nil
		case *row.OFPort < 0:
			return false, errors.New("ovs-vswitchd could not add the port, see its log")
		case uint32(*row.OFPort) != want:
			return false, fmt.Errorf("ovs-vswitchd gave it port number %d, because the requested %d is in use", *row.OFPort, want)
		}
		return true, nil
	})
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return fmt.Errorf("ovs-vswitchd has not added the port (is it running?): %w", err)
	}
	return err
}

// RemovePort removes a pod's port from the bridge. A port that does not exist is no error; a port that is not a pod's is
// left alone and is one. It does not wait for ovs-vswitchd, which may be down. So do not give the name to another device
// with the same port number at once: an ovs-vswitchd that sees both changes as one keeps the old, dead device. Names that
// hold a container's ID are never given twice.
func (c *Client) RemovePort(ctx context.Context, name string) error {
	if err := c.removePort(ctx, name); err != nil {
		return fmt.Errorf("remove port %s from bridge %s: %w", name, c.bridge, err)
	}
	return nil
}

func (c *Client) removePort(ctx context.Context, name string) error {
	return c.removeIf(ctx, name, func(row *interfaceRow) error {
		if row == nil || !isOurs(row.ExternalIDs) {
			return errors.New("it is not a pod's port and is left alone")
		}
		return nil
	})
}

// removeAttachment removes the port unless it has become another attachment's.
func (c *Client) removeAttachment(ctx context.Context, a model.Attachment) error {
	return c.removeIf(ctx, a.HostIfName, func(row *interfaceRow) error {
		if row == nil {
			return nil
		}
		return sameAttachment(row, a)
	})
}

// removeIf removes the port of that name, if there is one, when check agrees.
func (c *Client) removeIf(ctx context.Context, name string, check func(*interfaceRow) error) error {
	s, err := c.session(ctx)
	if err != nil {
		return err
	}
	port, err := s.portByName(ctx, name)
	if port == nil || err != nil {
		return err
	}
	iface, err := s.interfaceByName(ctx, name)
	if err != nil {
		return err
	}
	if err := check(iface); err != nil {
		return err
	}
	c.ownRemoval(port.UUID, iface)
	if _, err = c.commit(ctx, []ovsdb.Operation{removeFromBridge(c.bridge, port.UUID)}); err != nil {
		c.forgetRemoval(port.UUID, iface)
	}
	return err
}

// removeFromBridge is all it takes: OVSDB drops the Port and Interface rows that nothing refers to.
func removeFromBridge(bridge, portUUID string) ovsdb.Operation {
	return mutate(tableBridge, where("name", bridge), *ovsdb.NewMutation("ports", ovsdb.MutateOperationDelete, uuidSet(portUUID)))
}

// Attachments returns what the pods' ports on the bridge say, ordered by port name, and the ports that say nothing
// readable. Ports that are not pods' are left out.
func (c *Client) Attachments(ctx context.Context) ([]model.Attachment, []BadPort, error) {
	s, err := c.session(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("read the attachments: %w", err)
	}
	v, err := s.view(c.bridge)
	if err != nil {
		return nil, nil, fmt.Errorf("read the attachments: %w", err)
	}
	var list []model.Attachment
	var bad []BadPort
	for _, pod := range v.podInterfaces() {
		a, err := decodeAttachment(pod.iface.Name, pod.iface.ExternalIDs)
		if err != nil {
			bad = append(bad, BadPort{Name: pod.iface.Name, Err: err})
			continue
		}
		list = append(list, a)
	}
	slices.SortFunc(list, func(a, b model.Attachment) int { return cmp.Compare(a.HostIfName, b.HostIfName) })
	slices.SortFunc(bad, func(a, b BadPort) int { return cmp.Compare(a.Name, b.Name) })
	return list, bad, nil
}

func ptr[T any](v T) *T { return &v }
