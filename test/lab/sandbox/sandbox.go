// Package sandbox simulates the machines of a small network on one Linux machine: each Node is a network, a mount and a
// UTS namespace with a NIC on a shared Underlay, and a cgroup of its own.
//
// Everything that stands belongs to a Group and lives only as long as its processes do: namespaces are not bound to
// files, so that when the last process is gone the kernel takes the namespaces, links and mounts with it. What outlives
// a process (the cgroups and one link in the caller's network namespace) carries a name derived from the group's. So
// Group.Destroy needs no record of what was created, and works after a crash at any moment.
//
// The values here hold no state of their own beyond process ids; they may be copied, stored as JSON and used from any
// goroutine. Nothing in this package knows what runs inside the nodes.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/vishvananda/netlink"
)

// destroyTimeout bounds how long killed processes may take to disappear.
const destroyTimeout = 30 * time.Second

var validGroup = regexp.MustCompile(`^[a-z][a-z0-9]{0,7}$`)

// Group is one simulated network; its value is the name that all its cgroups and its link derive from.
type Group string

// ParseGroup checks a name that a person typed.
func ParseGroup(name string) (Group, error) {
	if !validGroup.MatchString(name) {
		return "", fmt.Errorf("name %q: want 1 to 8 lower-case letters and digits, a letter first", name)
	}
	return Group(name), nil
}

// HostLink is the name of the group's one link in the caller's network namespace.
func (g Group) HostLink() string { return string(g) + "-host" }

// Cgroup is the group's cgroup, the parent of its members' cgroups.
func (g Group) Cgroup() Cgroup { return Cgroup(cgroupTop + "/" + string(g)) }

// Destroy ends every process of the group and removes everything else that it left. Calling it when nothing is left, or
// again after it failed, is fine.
func (g Group) Destroy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, destroyTimeout)
	defer cancel()
	if err := g.Cgroup().Kill(ctx); err != nil {
		return fmt.Errorf("destroy %s: %w", g, err)
	}
	if err := deleteLink(g.HostLink()); err != nil {
		return fmt.Errorf("destroy %s: %w", g, err)
	}
	if err := g.Cgroup().Remove(ctx); err != nil {
		return fmt.Errorf("destroy %s: %w", g, err)
	}
	return nil
}

// Leftovers lists what still exists of the group: processes, cgroups and the host link.
func (g Group) Leftovers() ([]string, error) {
	var found []string
	pids, err := g.Cgroup().PIDs()
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		found = append(found, fmt.Sprintf("process %d (%s)", pid, commandName(pid)))
	}
	dirs, err := g.Cgroup().directories()
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		found = append(found, "cgroup "+dir)
	}
	if _, err := netlink.LinkByName(g.HostLink()); err == nil {
		found = append(found, "link "+g.HostLink())
	} else if !isLinkNotFound(err) {
		return nil, fmt.Errorf("look for link %s: %w", g.HostLink(), err)
	}
	return found, nil
}

func deleteLink(name string) error {
	link, err := netlink.LinkByName(name)
	if isLinkNotFound(err) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	// The kernel deletes a veth by itself when the namespace of its peer goes, which may happen between the two calls.
	if err != nil && !isLinkNotFound(err) && !isNoDevice(err) {
		return fmt.Errorf("delete link %s: %w", name, err)
	}
	return nil
}

func isLinkNotFound(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound)
}
