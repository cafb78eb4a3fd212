package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/weft-cni/weft/test/lab/datapath"
	"github.com/weft-cni/weft/test/lab/sandbox"
)

// file is the record's name in the state directory.
const file = "state.json"

// Cluster is the record of a running cluster.
type Cluster struct {
	Plan    Plan      `json:"plan"`
	Dir     string    `json:"dir"` // the state directory, absolute
	Created time.Time `json:"created"`
	Tunnel  string    `json:"tunnel"`
	// Datapath is the nodes'.
	Datapath datapath.Datapath `json:"datapath"`
	// APIServer is the URL of kube-apiserver.
	APIServer string `json:"apiServer"`
	// Components is the directory of the Kubernetes programs.
	Components string `json:"components"`
	// Underlay is the network between the nodes.
	Underlay sandbox.Underlay `json:"underlay"`
	Outside  Outside          `json:"outside"`
	// ControlPlane is where etcd and the Kubernetes programs that belong to no node run. It has routes to all pods.
	ControlPlane sandbox.Node `json:"controlPlane"`
	Nodes        []Node       `json:"nodes"`
	// Processes are the control plane's, by program.
	Processes map[string]sandbox.Process `json:"processes"`
}

// Outside is a host on the underlay that is not part of the cluster and knows no way to pod or Service addresses.
type Outside struct {
	Sandbox sandbox.Node `json:"sandbox"`
	Addrs   []netip.Addr `json:"addrs"`
	// Beyond are addresses of it that nodes reach over their default route.
	Beyond []netip.Addr `json:"beyond"`
}

// Node is one node of the cluster.
type Node struct {
	Name    string       `json:"name"`
	Sandbox sandbox.Node `json:"sandbox"`
	Addrs   []netip.Addr `json:"addrs"` // its InternalIPs, primary family first
	// Processes are the node's daemons, by program.
	Processes map[string]sandbox.Process `json:"processes"`
}

// What the tool calls the members of the underlay other than nodes.
const (
	OutsideName      = "outside"
	ControlPlaneName = "control-plane"
)

// Kubeconfig is the administrator's configuration for kubectl and client-go.
func (c Cluster) Kubeconfig() string { return filepath.Join(c.Dir, "kubeconfig") }

// Kubectl is the path of kubectl.
func (c Cluster) Kubectl() string { return filepath.Join(c.Dir, "bin", "kubectl") }

// Find returns the node with this name, or the outside host, or the control plane.
func (c Cluster) Find(name string) (sandbox.Node, error) {
	switch name {
	case OutsideName:
		return c.Outside.Sandbox, nil
	case ControlPlaneName:
		return c.ControlPlane, nil
	}
	var known []string
	for _, n := range c.Nodes {
		if n.Name == name {
			return n.Sandbox, nil
		}
		known = append(known, n.Name)
	}
	return sandbox.Node{}, fmt.Errorf("no node %q: want one of %v, %s or %s", name, known, ControlPlaneName, OutsideName)
}

// Load reads the record in a state directory. The error is fs.ErrNotExist when there is no cluster.
func Load(dir string) (Cluster, error) {
	data, err := os.ReadFile(filepath.Join(dir, file))
	if errors.Is(err, fs.ErrNotExist) {
		return Cluster{}, fmt.Errorf("no cluster in %s, start one with `make cluster`: %w", dir, err)
	}
	if err != nil {
		return Cluster{}, fmt.Errorf("read cluster state: %w", err)
	}
	var c Cluster
	if err := json.Unmarshal(data, &c); err != nil {
		return Cluster{}, fmt.Errorf("read cluster state %s: %w", filepath.Join(dir, file), err)
	}
	return c, nil
}

// Save writes the record, replacing an earlier one whole.
func (c Cluster) Save() error {
	data, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("write cluster state: %w", err)
	}
	path := filepath.Join(c.Dir, file)
	if err := os.WriteFile(path+".new", append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("write cluster state: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write cluster state: %w", err)
	}
	return nil
}
