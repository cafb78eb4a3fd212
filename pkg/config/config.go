// Package config is the agent's configuration: the settings, their defaults, and a strict reader of config.yaml, the key
// of the ConfigMap weft-config that the agent finds mounted.
//
// A Config is a plain value that nobody changes after it was parsed. The package keeps no state and starts no goroutine;
// whoever watches the file calls Load again and asks Diff what to do.
package config

import (
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/weft-cni/weft/pkg/model"
)

// Datapath is the kind of Open vSwitch datapath, in the words of OVSDB's datapath_type column.
type Datapath string

// The datapaths.
const (
	DatapathSystem Datapath = "system"
	DatapathNetdev Datapath = "netdev"
)

// LogFormat is how log records are written.
type LogFormat string

// The log formats.
const (
	LogText LogFormat = "text"
	LogJSON LogFormat = "json"
)

// Established is what a policy that forbids a connection does to it when it exists already.
type Established string

// What happens to established connections.
const (
	EstablishedJudge Established = "judge"
	EstablishedKeep  Established = "keep"
)

// Config is what a cluster administrator can set. docs/configuration.md is made from the comments of its fields.
type Config struct {
	// The encapsulation that this node sends with. Every node receives both, so a running cluster can change without
	// losing a packet.
	TunnelType model.TunnelType `json:"tunnelType"`

	// Where Open vSwitch forwards: `system` is its kernel module, `netdev` its userspace datapath, which needs none.
	Datapath Datapath `json:"datapath"`

	// The MTU of pod interfaces. With 0 it is the MTU of the underlay minus what the tunnel adds, and follows it.
	MTU int `json:"mtu"`

	// Whether a pod's traffic to outside the cluster leaves with the address of its node. Turn it off when the
	// network beyond the nodes has routes to the pod CIDRs. Traffic to other nodes' InternalIPs always leaves with
	// that address, because nodes drop what enters by an uplink in a pod's name.
	EgressMasquerade bool `json:"egressMasquerade"`

	// Destinations outside the cluster that pods reach with their own address although `egressMasquerade` is on, for
	// example `["192.168.0.0/16", "2001:db8::/32"]`. Those networks need routes to the pod CIDRs.
	NonMasqueradeCIDRs []netip.Prefix `json:"nonMasqueradeCIDRs"`

	// The ranges of Services' cluster IPs, so that processes on the node reach them. Kubernetes 1.33 and newer tell them (the
	// API `ServiceCIDR`); these are used besides, for example `["10.96.0.0/16"]`.
	ServiceCIDRs []netip.Prefix `json:"serviceCIDRs"`

	// Ranges that every node's pod CIDRs must be in, for example `["10.244.0.0/16"]`. Others are not used, and are
	// reported. When empty, any pod CIDR is used that takes nothing away from Services, nodes and other nodes' pods.
	ClusterCIDRs []netip.Prefix `json:"clusterCIDRs"`

	// Whether Services' `externalIPs` are served. Anyone who may write a Service can name any address there and draws its
	// clients, so turn it off where not everybody who writes Services is trusted. Load balancers' addresses
	// (`status.loadBalancer`), which controllers write, are always served.
	ExternalIPs bool `json:"externalIPs"`

	// The addresses of the node that have node ports: `["primary"]` for its InternalIPs, or ranges, for example
	// `["192.168.0.0/16", "2001:db8::/32"]`. When empty, all addresses have them but loopback and IPv6 link-local ones. As
	// with kube-proxy, a family of which no range is listed has them at all its addresses.
	NodePortAddresses []string `json:"nodePortAddresses"`

	// What a changed NetworkPolicy does to connections that it forbids and that exist already: `judge` stops them, `keep`
	// lets them end by themselves.
	EstablishedConnections Established `json:"establishedConnections"`

	// The URL of the Kubernetes API server, for clusters where the `kubernetes` Service cannot be reached before Weft
	// runs, for example `https://10.0.0.1:6443`. When empty, the agent uses that Service.
	APIServer string `json:"apiServer"`

	// The directory on the node with Open vSwitch's sockets: `db.sock` and those of its bridges. The DaemonSet mounts the
	// node's `/run`, so any directory below it works; one elsewhere has to be mounted at the same path.
	OVSRunDir string `json:"ovsRunDir"`

	// Where the agent serves `/healthz`, `/livez`, `/readyz` and `/metrics`. The DaemonSet's probes ask at the default.
	HealthAddr netip.AddrPort `json:"healthAddr"`

	// Where the agent answers load balancers that ask whether the node can serve Services, in place of kube-proxy:
	// `/healthz` and `/livez`. Empty for nowhere.
	NodeHealthAddr netip.AddrPort `json:"nodeHealthAddr"`

	// The least severe records to log.
	LogLevel slog.Level `json:"logLevel"`

	// How log records are written.
	LogFormat LogFormat `json:"logFormat"`
}

// PrimaryAddresses stands, alone in NodePortAddresses, for the node's InternalIPs.
const PrimaryAddresses = "primary"

// Default is the configuration of an empty file.
func Default() Config {
	return Config{
		TunnelType:       model.Geneve,
		Datapath:         DatapathSystem,
		EgressMasquerade: true,
		ExternalIPs:      true,

		EstablishedConnections: EstablishedJudge,

		OVSRunDir:  "/run/openvswitch",
		HealthAddr: netip.MustParseAddrPort("127.0.0.1:9470"),
		LogLevel:   slog.LevelInfo,

		NodeHealthAddr: netip.MustParseAddrPort("[::]:10256"),
		LogFormat:      LogText,
	}
}

// Change is one setting that differs between two configurations.
type Change struct {
	Key      string
	Old, New string
	// Live settings take effect in a running agent; the others need a restart.
	Live bool
}

// Diff lists what differs between two configurations, in the order of the documentation.
func Diff(before, after Config) []Change {
	var changes []Change
	for _, s := range settings {
		o, n := s.text(before), s.text(after)
		if o != n {
			changes = append(changes, Change{Key: s.key, Old: o, New: n, Live: s.live})
		}
	}
	return changes
}

// ApplyLive gives the configuration that a running agent has after the file changed: the live settings are the new
// ones, the others stay until a restart. Both configurations must have come from this package's parser.
func ApplyLive(running, next Config) Config {
	for _, s := range settings {
		if !s.live {
			continue
		}
		if err := s.parse(&running, []byte(s.text(next))); err != nil {
			panic(fmt.Sprintf("config: key %s does not parse its own text: %v", s.key, err))
		}
	}
	return running
}
