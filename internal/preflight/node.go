// Package preflight looks for what keeps Weft from working, before it is installed: on a node (Node), and in what the
// API server knows of a cluster (Cluster). Both are pure but for the files that Node reads; they change nothing.
package preflight

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weft-cni/weft/internal/unixctl"
	"github.com/weft-cni/weft/pkg/model"
)

// Finding is one line: a check of a node, or of the cluster when Node is empty.
type Finding struct {
	Node  string `json:"node,omitempty"`
	Check string `json:"check"`
	// Saw is what was found; Do says what to do about a problem, and is empty when there is none.
	Saw string `json:"saw"`
	Do  string `json:"do,omitempty"`
}

// Host is where a node's files are, and how its Open vSwitch is asked.
type Host struct {
	// Root is prepended to paths: the node's own file system may be mounted elsewhere.
	Root string
	// Datapath is the setting: system or netdev.
	Datapath string
	// Encryption is the setting: none or wireguard.
	Encryption string
	// TunnelType is the setting.
	TunnelType string
	// Ports returns the error of listening at a port.
	Ports func(network, address string) error
	// NFT runs nft with arguments, and returns what it writes.
	NFT func(ctx context.Context, args ...string) ([]byte, error)
}

// modules are those of Open vSwitch's kernel datapath, and of the node's rules.
var modules = func() map[string][]string {
	system := []string{"openvswitch", "nf_tables"}
	for _, e := range model.Encapsulations {
		system = append(system, e.Module())
	}
	return map[string][]string{"system": system, "netdev": {"nf_tables"}}
}()

// Node looks at the node itself.
func Node(ctx context.Context, h Host) []Finding {
	list := []Finding{h.modules("kernel modules", modules[h.Datapath], "install the kernel's package with these modules "+
		"(linux-modules-extra on Ubuntu), or set datapath: netdev")}
	if h.Encryption == "wireguard" {
		list = append(list, h.modules("WireGuard", []string{"wireguard"}, "install the kernel's package with the module "+
			"wireguard, or a kernel of 5.6 or newer, or set encryption: none"))
	}
	if h.TunnelType == string(model.IPIP) {
		list = append(list, h.modules("IPIP", model.IPIPModules(), "install the kernel's package with these "+
			"modules (sit and ip6_tunnel are for IPv6), or set tunnelType: geneve"))
	}
	list = append(list, h.openVSwitch(ctx), h.networks())
	list = append(append(list, h.rules(ctx)...), h.advertisements())
	list = append(list, h.port("healthAddr", "tcp", "127.0.0.1:9470"), h.port("nodeHealthAddr", "tcp", ":10256"))
	for _, e := range model.Encapsulations {
		if port := e.UDPPort(); port != 0 {
			list = append(list, h.port(e.Title(), "udp", fmt.Sprintf(":%d", port)))
		}
	}
	return list
}

func (h Host) path(parts ...string) string {
	return filepath.Join(append([]string{h.Root, "/"}, parts...)...)
}

// modules looks for modules that are loaded, built in, or can be loaded. Advice says what to do when some are missing.
func (h Host) modules(check string, needed []string, advice string) Finding {
	f := Finding{Check: check}
	release, err := os.ReadFile(h.path("proc/sys/kernel/osrelease"))
	if err != nil {
		return unknown(f, err)
	}
	known := map[string]bool{}
	dir := h.path("lib/modules", strings.TrimSpace(string(release)))
	for _, file := range []string{h.path("proc/modules"), filepath.Join(dir, "modules.builtin"), filepath.Join(dir, "modules.dep")} {
		text, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return unknown(f, err)
		}
		lines := bufio.NewScanner(bytes.NewReader(text))
		lines.Buffer(nil, 1<<20) // a module may depend on many
		for lines.Scan() {
			name, _, _ := strings.Cut(lines.Text(), " ")
			name, _, _ = strings.Cut(filepath.Base(strings.TrimSuffix(name, ":")), ".ko")
			known[strings.ReplaceAll(name, "_", "-")] = true
		}
	}
	var missing []string
	for _, m := range needed {
		if !known[strings.ReplaceAll(m, "_", "-")] {
			missing = append(missing, m)
		}
	}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) && h.Datapath == "netdev" {
		f.Saw = "not known: there is no /lib/modules/" + strings.TrimSpace(string(release)) + ", so " + strings.Join(needed, ", ") +
			" must be built in"
		return f
	}
	if len(missing) > 0 {
		f.Saw = "kernel " + strings.TrimSpace(string(release)) + " has no " + strings.Join(missing, ", ")
		f.Do = advice
		return f
	}
	f.Saw = strings.Join(needed, ", ")
	return f
}

// oldest is the oldest Open vSwitch that works.
var oldest = []int{3, 1}

var ovsVersion = regexp.MustCompile(`Open vSwitch\) (\d+)\.(\d+)\S*`)

// openVSwitch connects to the database, as the agent does, and asks ovs-vswitchd for its version.
func (h Host) openVSwitch(ctx context.Context) Finding {
	f := Finding{Check: "Open vSwitch"}
	version, err := askVersion(ctx, h.path("run/openvswitch"))
	switch m := ovsVersion.FindStringSubmatch(version); {
	case errors.Is(err, fs.ErrNotExist):
		f.Saw = "/run/openvswitch/db.sock not found"
		f.Do = "install and start Open vSwitch 3.1 or newer (openvswitch-switch on Debian)"
	case errors.Is(err, fs.ErrPermission):
		f.Saw = err.Error()
		f.Do = "Open vSwitch runs as a user of its own: add DAC_OVERRIDE to the agent's capabilities in the manifest"
	case err != nil:
		f.Saw, f.Do = err.Error(), "start ovsdb-server and ovs-vswitchd"
	case m == nil:
		f.Saw, f.Do = fmt.Sprintf("ovs-vswitchd says %q", version), "Weft needs Open vSwitch 3.1 or newer"
	default:
		_, f.Saw, _ = strings.Cut(m[0], ") ")
		f.Do = Upgrade(version)
	}
	return f
}

// Upgrade says what to do about an Open vSwitch that says this version of itself, or "" when it is new enough.
func Upgrade(version string) string {
	m := ovsVersion.FindStringSubmatch(version)
	if m == nil {
		return ""
	}
	major, _ := strconv.Atoi(m[1]) // digits
	minor, _ := strconv.Atoi(m[2])
	if slices.Compare([]int{major, minor}, oldest) >= 0 {
		return ""
	}
	return fmt.Sprintf("upgrade it to %d.%d or newer", oldest[0], oldest[1])
}

// askTimeout bounds what Open vSwitch is asked.
const askTimeout = 5 * time.Second

// askVersion asks the ovs-vswitchd in a directory of sockets for its version; the database must be there.
func askVersion(ctx context.Context, dir string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	database, err := new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, "db.sock"))
	if err != nil {
		return "", err
	}
	_ = database.Close()
	socket, err := unixctl.Socket(dir, "ovs-vswitchd")
	if errors.Is(err, fs.ErrNotExist) {
		return "", errors.New("ovs-vswitchd does not run")
	}
	if err != nil {
		return "", err
	}
	return unixctl.Call(ctx, socket, "version")
}

// networks looks for other plugins' configurations: the container runtime takes the first file by name.
func (h Host) networks() Finding {
	f := Finding{Check: "other CNI plugins"}
	entries, err := os.ReadDir(h.path("etc/cni/net.d"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return unknown(f, err)
	}
	var others []string
	for _, e := range entries {
		if slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(e.Name())) && !strings.Contains(e.Name(), "weft") {
			others = append(others, e.Name())
		}
	}
	f.Saw = "none in /etc/cni/net.d"
	if len(others) > 0 {
		f.Saw = "/etc/cni/net.d has " + strings.Join(others, ", ")
		f.Do = "remove the other plugin, and its file, so that the container runtime takes Weft's"
	}
	return f
}

// port looks whether a port that Weft takes is free.
func (h Host) port(what, network, address string) Finding {
	f := Finding{Check: "port of " + what, Saw: network + " " + address + " is free"}
	if err := h.Ports(network, address); err != nil {
		f.Saw = fmt.Sprintf("%s %s: %v", network, address, err)
		f.Do = "stop the program that has it (ss -lnp), or change the setting"
	}
	return f
}

func unknown(f Finding, err error) Finding {
	f.Saw, f.Do = err.Error(), "run weftctl check as root"
	return f
}

// Listen is Host.Ports for the machine itself.
func Listen(network, address string) error {
	if network == "udp" {
		conn, err := net.ListenPacket(network, address) //nolint:noctx // it does not wait
		if err != nil {
			return err
		}
		return conn.Close()
	}
	listener, err := net.Listen(network, address) //nolint:noctx // it does not wait
	if err != nil {
		return err
	}
	return listener.Close()
}
