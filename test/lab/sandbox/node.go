package sandbox

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Node is one simulated machine: a namespace of each kind, held open by one sleeping process.
type Node struct {
	Group  Group   `json:"group"`
	Name   string  `json:"name"`
	Holder Process `json:"holder"`
}

// Files says which files a node has to itself. Everything else it shares with the machine, apart from /run and /sys.
type Files struct {
	// CopyOnWrite are directories that show the machine's files; what the node changes there is in memory and its own.
	CopyOnWrite []string
	// Binds put a file or directory of the machine in another place. The target is created where it lies in a
	// CopyOnWrite directory, and must exist otherwise.
	Binds []Bind
}

// Bind shows Source at Target.
type Bind struct{ Source, Target string }

// Start creates a node whose host name is its name. It has a /run of its own (empty, in memory), a /sys that shows its
// own network devices, and loopback up. All its mounts are shared, as on a machine that systemd booted, but with itself
// only.
func (g Group) Start(name string, files Files) (Node, error) {
	n := Node{Group: g, Name: name}
	if err := n.Cgroup().Create(); err != nil {
		return Node{}, fmt.Errorf("start node %s: %w", name, err)
	}
	argv, err := n.Cgroup().Enter()
	if err != nil {
		return Node{}, fmt.Errorf("start node %s: %w", name, err)
	}
	argv = append(argv, "unshare", "--net", "--mount", "--uts", "--propagation", "private", "/bin/sh", "-ec",
		setupScript(name, files))
	cmd := exec.Command(argv[0], argv[1:]...)
	ready, report, err := os.Pipe()
	if err != nil {
		return Node{}, fmt.Errorf("start node %s: %w", name, err)
	}
	defer ready.Close()
	// The holder reports through its standard output and error: "ready", or what went wrong.
	cmd.Stdout, cmd.Stderr = report, report
	holder, err := start(cmd)
	report.Close()
	if err != nil {
		return Node{}, fmt.Errorf("start node %s: %w", name, err)
	}
	var output []string
	for lines := bufio.NewScanner(ready); lines.Scan(); {
		if lines.Text() == "ready" {
			n.Holder = holder.Process
			return n, nil
		}
		output = append(output, lines.Text())
	}
	return Node{}, fmt.Errorf("start node %s: setting up its namespaces failed: %s", name, strings.Join(output, "; "))
}

// setupScript prepares the namespaces from inside and then sleeps, holding them open.
func setupScript(hostname string, files Files) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	const stage = "/run/stage" // sources and upper layers are gathered here, before the new mounts hide where they lie
	line("echo %s >/proc/sys/kernel/hostname", quote(hostname))
	line("mount -t tmpfs -o mode=755 tmpfs /run")
	line("mkdir /run/lock %s", stage)
	line("mount -t tmpfs tmpfs %s", stage)
	for i, bind := range files.Binds {
		line("if [ -d %s ]; then mkdir %s/%d; else : >%s/%d; fi", quote(bind.Source), stage, i, stage, i)
		line("mount --bind %s %s/%d", quote(bind.Source), stage, i)
	}
	for i, dir := range files.CopyOnWrite {
		line("mkdir -p %s/upper%d %s/work%d", stage, i, stage, i)
		line("mount -t overlay -o lowerdir=%s,upperdir=%s/upper%d,workdir=%s/work%d overlay %s", quote(dir), stage, i, stage,
			i, quote(dir))
	}
	for i, bind := range files.Binds {
		line("if [ -d %s/%d ]; then mkdir -p %s; fi", stage, i, quote(bind.Target))
		line("mount --move %s/%d %s", stage, i, quote(bind.Target))
	}
	// A fresh sysfs shows this network namespace; it hides the cgroups, which are bound into it again.
	line("mkdir %s/sys", stage)
	line("mount -t sysfs sysfs %s/sys", stage)
	line("mount --rbind /sys/fs/cgroup %s/sys/fs/cgroup", stage)
	line("mount --move %s/sys /sys", stage)
	line("umount --lazy %s", stage) // the overlays keep their layers
	line("rmdir %s", stage)
	line("mount --make-rshared /")
	line("ip link set lo up")
	line("echo ready")
	line("exec sleep infinity </dev/null >/dev/null 2>&1")
	return b.String()
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// Cgroup is where the node's processes are.
func (n Node) Cgroup() Cgroup { return n.Group.Cgroup().Child(n.Name) }

// Enter is the command prefix that runs a program in the node's namespaces and cgroup.
func (n Node) Enter() ([]string, error) {
	enter, err := n.Cgroup().Enter()
	if err != nil {
		return nil, fmt.Errorf("enter node %s: %w", n.Name, err)
	}
	if !n.Holder.Alive() {
		return nil, fmt.Errorf("enter node %s: it is gone (its process %d has ended)", n.Name, n.Holder.PID)
	}
	return append(enter, "nsenter", fmt.Sprintf("--target=%d", n.Holder.PID), "--net", "--mount", "--uts", "--"), nil
}

// Run runs a command on the node and returns its standard output.
func (n Node) Run(ctx context.Context, args ...string) (string, error) {
	enter, err := n.Enter()
	if err != nil {
		return "", err
	}
	out, err := exec.CommandContext(ctx, enter[0], append(enter[1:], args...)...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
		}
		return string(out), fmt.Errorf("on node %s: %s: %w", n.Name, strings.Join(args, " "), err)
	}
	return string(out), nil
}

// StartDaemon starts a process on the node and leaves it running.
func (n Node) StartDaemon(d Daemon) (Running, error) {
	enter, err := n.Enter()
	if err != nil {
		return Running{}, err
	}
	running, err := d.start(enter)
	if err != nil {
		return Running{}, fmt.Errorf("on node %s: %w", n.Name, err)
	}
	return running, nil
}

// Configure brings a link of the node up with these addresses and, for each valid gateway, a default route.
func (n Node) Configure(link string, addrs []netip.Prefix, gateways []netip.Addr) error {
	handle, err := n.netlink()
	if err != nil {
		return err
	}
	defer handle.Close()
	return configure(handle, link, addrs, gateways)
}

// netlink opens a handle in the node's network namespace. The caller closes it.
func (n Node) netlink() (*netlink.Handle, error) {
	ns, err := n.netNS()
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	handle, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink on node %s: %w", n.Name, err)
	}
	return handle, nil
}

func (n Node) netNS() (netns.NsHandle, error) {
	ns, err := netns.GetFromPid(n.Holder.PID)
	if err != nil {
		return netns.None(), fmt.Errorf("open network namespace of node %s: %w", n.Name, err)
	}
	return ns, nil
}

func configure(handle *netlink.Handle, name string, addrs []netip.Prefix, gateways []netip.Addr) error {
	link, err := handle.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := handle.LinkSetUp(link); err != nil {
		return fmt.Errorf("set link %s up: %w", name, err)
	}
	for _, prefix := range addrs {
		addr := &netlink.Addr{IPNet: ipNet(prefix)}
		if prefix.Addr().Is6() {
			// Addresses here are unique by construction; detection would keep them unusable for a second or two.
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := handle.AddrAdd(link, addr); err != nil && !errors.Is(err, syscall.EEXIST) {
			return fmt.Errorf("add address %s to %s: %w", prefix, name, err)
		}
	}
	for _, gw := range gateways {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: gw.AsSlice(), Dst: ipNet(netip.PrefixFrom(unspecified(gw),
			0))}
		if err := handle.RouteReplace(route); err != nil {
			return fmt.Errorf("add default route via %s on %s: %w", gw, name, err)
		}
	}
	return nil
}

func unspecified(like netip.Addr) netip.Addr {
	if like.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func isNoDevice(err error) bool { return errors.Is(err, syscall.ENODEV) }
