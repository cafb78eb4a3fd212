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

// ErrPortConflict reports that a port of that name exists and is not this attachment's.
var ErrPortConflict = errors.New("port name is taken")

// removeTimeout bounds the cleanup after a failed AddPort.
const removeTimeout = 5 * time.Second

// BadPort is a pod's port on Weft's bridge with an invalid record.
type BadPort struct {
	Name string
	Err  error
}

func (b BadPort) Error() string { return fmt.Sprintf("port %s: %v", b.Name, b.Err) }

// AddPort adds the pod's port to the bridge and blocks until ovs-vswitchd has given it the requested number. For an
// attachment that is already on the bridge it only waits. After an error it removes what it added; only after
// ErrDisconnected parts may remain, which a repeated call or RemovePort handles.
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
	var refused *rejectedError
	if errors.As(err, &refused) {
		// Another program may have added a port of that name meanwhile.
		if row, _ := s.interfaceByName(ctx, a.HostIfName); row != nil {
			return c.joinPort(ctx, s, row, a)
		}
		return err
	}
	if err == nil && results[len(results)-1].Count == 0 {
		// OVSDB has deleted the inserted rows, because no bridge refers to the port.
		return errors.New("the bridge does not exist (EnsureBridge creates it)")
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
		err = fmt.Errorf("%w (and the cleanup failed: %w)", err, cerr)
	}
	return err
}

// joinPort waits for a port that is already in the database, if it is the same attachment's.
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
		return fmt.Errorf("%w by a port with an invalid record: %w", ErrPortConflict, err)
	}
	if have.Key() != a.Key() || have.Pod != a.Pod || have.OFPort != a.OFPort || have.MAC != a.MAC ||
		!slices.Equal(have.IPs, a.IPs) {
		return fmt.Errorf("%w by another attachment: pod %s, container %s, port number %d, addresses %v",
			ErrPortConflict, have.Pod, have.Key(), have.OFPort, have.IPs)
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
	return append(ops, mutate(tableBridge, where("name", bridge),
		*ovsdb.NewMutation("ports", ovsdb.MutateOperationInsert, uuidSet(port.UUID)))), nil
}

// waitPort waits until ovs-vswitchd has added the interface, and checks its number.
func (c *Client) waitPort(ctx context.Context, s *session, name string, want uint32) error {
	err := c.wait(ctx, s, name, func() (bool, error) {
		row, err := s.interfaceByName(ctx, name)
		switch {
		case err != nil:
			return false, err
		case row == nil:
			return false, errors.New("another program removed the port")
		case row.Error != nil:
			return false, fmt.Errorf("ovs-vswitchd: %s", *row.Error)
		case row.OFPort == nil:
			return false, nil
		case *row.OFPort < 0:
			return false, errors.New("ovs-vswitchd could not add the port, see its log")
		case uint32(*row.OFPort) != want:
			return false, fmt.Errorf("ovs-vswitchd gave it port number %d, because the requested %d is in use",
				*row.OFPort, want)
		}
		return true, nil
	})
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return fmt.Errorf("ovs-vswitchd has not added the port (is it running?): %w", err)
	}
	return err
}

// RemovePort removes a pod's port from the bridge. Idempotent; a port that is not a pod's is an error and stays. It
// does not wait for ovs-vswitchd, which may be down. So do not reuse the name at once for another device with the same
// port number: an ovs-vswitchd that sees both changes together keeps the old, deleted device. Names with a container ID
// are never reused.
func (c *Client) RemovePort(ctx context.Context, name string) error {
	if err := c.removePort(ctx, name); err != nil {
		return fmt.Errorf("remove port %s from bridge %s: %w", name, c.bridge, err)
	}
	return nil
}

func (c *Client) removePort(ctx context.Context, name string) error {
	return c.removeIf(ctx, name, func(row *interfaceRow) error {
		if row == nil || !isOurs(row.ExternalIDs) {
			return errors.New("not a pod's port; it stays")
		}
		return nil
	})
}

// removeAttachment removes the port if it still is this attachment's.
func (c *Client) removeAttachment(ctx context.Context, a model.Attachment) error {
	return c.removeIf(ctx, a.HostIfName, func(row *interfaceRow) error {
		if row == nil {
			return nil
		}
		return sameAttachment(row, a)
	})
}

// removeIf removes the port of that name, if it exists and check returns nil.
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
	c.markOwnRemoval(port.UUID, iface)
	if _, err = c.commit(ctx, []ovsdb.Operation{removeFromBridge(c.bridge, port.UUID)}); err != nil {
		c.unmarkOwnRemoval(port.UUID, iface)
	}
	return err
}

// removeFromBridge removes a port. OVSDB then deletes the Port and Interface rows, because nothing refers to them.
func removeFromBridge(bridge, portUUID string) ovsdb.Operation {
	return mutate(tableBridge, where("name", bridge),
		*ovsdb.NewMutation("ports", ovsdb.MutateOperationDelete, uuidSet(portUUID)))
}

// Attachments returns the attachments recorded on the bridge's pod ports, sorted by port name, and the pod ports with
// an invalid record. Other ports are skipped.
func (c *Client) Attachments(ctx context.Context) ([]model.Attachment, []BadPort, error) {
	s, err := c.session(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("read the attachments: %w", err)
	}
	v, err := s.snapshot(c.bridge)
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
