// Package config is the agent's configuration: the settings, their defaults, and a strict parser of config.yaml, the
// key of the ConfigMap weft-config that the DaemonSet mounts.
//
// A Config is a plain value that is not changed after it was parsed. The package keeps no state and starts no
// goroutine; the code that watches the file calls Load again and compares with Diff.
package config

import (
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/weft-cni/weft/pkg/model"
)

// Datapath is the kind of Open vSwitch datapath, as in OVSDB's column datapath_type.
type Datapath string

// The datapaths.
const (
	DatapathSystem Datapath = "system"
	DatapathNetdev Datapath = "netdev"
)

// LogFormat is the format of log records.
type LogFormat string

// The log formats.
const (
	LogText LogFormat = "text"
	LogJSON LogFormat = "json"
)

// Encryption is what encrypts pods' packets between nodes.
type Encryption string

// The encryptions.
const (
	EncryptionNone      Encryption = "none"
	EncryptionWireGuard Encryption = "wireguard"
)

// Established selects what a policy does to existing connections that it denies.
type Established string

// What a policy does to existing connections that it denies.
const (
	EstablishedStop Established = "stop"
	EstablishedKeep Established = "keep"
)

// Config is the agent's configuration. The comments of its fields are the text of docs/configuration.md.
type Config struct {
	// The encapsulation with which this node sends. A running cluster can change it, between `geneve`, `vxlan` and
	// `gre` without packet loss; with `mtu: 0` GRE and IPIP also change the pods' MTU
	// ([transports.md](transports.md#changing-it)). `ipip` is made by the nodes' kernels, which need the modules
	// `ipip`, `sit` and `ip6_tunnel`; until two nodes have them, packets between them travel by Geneve
	// ([transports.md](transports.md#ipip)).
	TunnelType model.Encapsulation `json:"tunnelType"`

	// How pods' packets travel between nodes: `overlay` in tunnels, `direct` as they are, by routes of the nodes' kernels,
	// `hybrid` directly to the nodes in the same subnet and in tunnels to the others ([transports.md](transports.md)).
	// Every node receives both, so a running cluster can change it without packet loss.
	Transport model.Mode `json:"transport"`

	// Who makes the routes of the transport `direct`: `node` adds them on each node, and reaches the nodes in its own
	// subnet alone; with `none` the network between the nodes has a route to every pod CIDR, as in a cloud's VPC. No
	// effect on the transport `overlay`; not with `hybrid`.
	DirectRoutes model.DirectRoutes `json:"directRoutes"`

	// What encrypts pods' packets between nodes: `none`, or `wireguard`, the kernel's WireGuard, whatever `transport` says
	// ([transports.md](transports.md)). Every node needs a kernel with WireGuard (5.6 or newer). Each node makes a key of
	// its own, which never leaves it.
	Encryption Encryption `json:"encryption"`

	// Whether encrypted packets are the only ones: a node without a key is unreachable, and what goes between pods of two
	// nodes otherwise is dropped and counted. With `false`, packets go as `transport` says to nodes that do not encrypt
	// yet; a running cluster that turns encryption on or off without packet loss needs that until every node has the new
	// setting. No effect without `encryption`.
	EncryptionStrict bool `json:"encryptionStrict"`

	// The UDP port of WireGuard on this node, which tells the others; not one of a tunnel.
	WireGuardPort uint16 `json:"wireguardPort"`

	// Where Open vSwitch forwards: `system` is the kernel module, `netdev` the userspace datapath, which needs no
	// module.
	Datapath Datapath `json:"datapath"`

	// The MTU of pod interfaces. With 0 it is the MTU of the underlay minus the overhead of the tunnels that the transport
	// and the encryption use, and follows changes of the underlay.
	MTU int `json:"mtu"`

	// Whether a pod's traffic to destinations outside the cluster has the address of its node as source. Turn it off
	// when the network beyond the nodes has routes to the pod CIDRs. Traffic to other nodes' InternalIPs always has
	// that address, because nodes drop packets with a pod's source address that enter by an uplink.
	EgressMasquerade bool `json:"egressMasquerade"`

	// Destinations outside the cluster that pods reach with their own address although `egressMasquerade` is on, for
	// example `["192.168.0.0/16", "2001:db8::/32"]`. Those networks need routes to the pod CIDRs.
	NonMasqueradeCIDRs []netip.Prefix `json:"nonMasqueradeCIDRs"`

	// The ranges of Services' cluster IPs, which processes on the node need to reach Services. Kubernetes 1.33 and
	// newer publish them in the API `ServiceCIDR`; these are used in addition, for example `["10.96.0.0/16"]`.
	ServiceCIDRs []netip.Prefix `json:"serviceCIDRs"`

	// Ranges that every node's pod CIDRs must be in, for example `["10.244.0.0/16"]`. Other pod CIDRs are rejected and
	// reported. When empty, a pod CIDR is accepted unless it overlaps Services, nodes' addresses or other nodes' pod
	// CIDRs.
	ClusterCIDRs []netip.Prefix `json:"clusterCIDRs"`

	// Whether Services' `externalIPs` are served. Anyone who may write a Service can name any address there and so
	// receive its traffic: turn it off unless everyone who writes Services is trusted. Load balancers' addresses
	// (`status.loadBalancer`), which controllers write, are always served.
	ExternalIPs bool `json:"externalIPs"`

	// The addresses of the node that serve node ports: `["primary"]` for its InternalIPs, or ranges, for example
	// `["192.168.0.0/16", "2001:db8::/32"]`. When empty, all addresses serve them except loopback and IPv6 link-local
	// ones. As with kube-proxy, a family without any range in the list serves them at all its addresses.
	NodePortAddresses []string `json:"nodePortAddresses"`

	// What a changed NetworkPolicy does to existing connections that it denies: `stop` stops them, `keep` lets them
	// continue until they close.
	EstablishedConnections Established `json:"establishedConnections"`

	// The DNS servers whose answers to pods teach the addresses of `domainNames` in ClusterNetworkPolicies: Services
	// (`namespace/name`), whose endpoints are meant, too, and addresses, with a port if it is not 53. No effect without
	// such policies.
	DNSServers []string `json:"dnsServers"`

	// The URL of the Kubernetes API server, for clusters where the `kubernetes` Service cannot be reached before Weft
	// runs, for example `https://10.0.0.1:6443`. When empty, the agent uses that Service.
	APIServer string `json:"apiServer"`

	// The directory on the node with Open vSwitch's sockets: `db.sock` and those of its bridges. The DaemonSet mounts
	// the node's `/run`, so any directory below it works; a directory elsewhere must be mounted at the same path.
	OVSRunDir string `json:"ovsRunDir"`

	// The address at which the agent serves `/healthz`, `/livez`, `/readyz` and `/metrics`, for people and monitoring.
	// The DaemonSet's probes ask at the agent's Unix socket instead (`weftctl health`).
	HealthAddr netip.AddrPort `json:"healthAddr"`
	// The address at which the agent serves `/metrics` to Prometheus in a pod or on another host, for example
	// `"[::]:9471"` for all addresses of the node. Every client that reaches the address can read the names of policies
	// and their counters. When empty, `/metrics` is served at `healthAddr` alone.
	MetricsAddr netip.AddrPort `json:"metricsAddr"`

	// The address at which the agent answers load balancers that ask whether the node can serve Services, in place of
	// kube-proxy: `/healthz` and `/livez`. Empty turns it off.
	NodeHealthAddr netip.AddrPort `json:"nodeHealthAddr"`

	// Whether the node asks every peer node's gateway, every ten seconds, whether small and full-sized packets arrive
	// (ICMP echo requests, at most 50 nodes a second). `weftctl status` names those that do not answer.
	PeerProbes bool `json:"peerProbes"`

	// The minimum severity of log records.
	LogLevel slog.Level `json:"logLevel"`

	// The format of log records.
	LogFormat LogFormat `json:"logFormat"`
}

// PrimaryAddresses stands, as the only entry of NodePortAddresses, for the node's InternalIPs.
const PrimaryAddresses = "primary"

// PeerTransport is the transport to peer nodes that the settings ask for.
func (c Config) PeerTransport() model.Transport {
	encrypted := c.Encryption == EncryptionWireGuard
	return model.Transport{Mode: c.Transport, Encapsulation: c.TunnelType,
		FabricRoutes: c.DirectRoutes == model.RoutesNone,
		Encrypted:    encrypted, Strict: encrypted && c.EncryptionStrict}
}

// TrustedDNS are the DNSServers.
func (c Config) TrustedDNS() model.DNSServers {
	var s model.DNSServers
	for _, word := range c.DNSServers {
		if at, err := parseDNSAddr(word); err == nil {
			s.Addrs = append(s.Addrs, at)
		} else {
			s.Services = append(s.Services, word)
		}
	}
	return s
}

// check returns an error when settings exclude each other.
func (c Config) check() error {
	if model.IsTunnelUDPPort(c.WireGuardPort) {
		return fmt.Errorf("wireguardPort %d is the UDP port of a tunnel, which every node receives; take another", c.WireGuardPort)
	}
	return c.PeerTransport().Check()
}

// Default is the configuration of an empty file.
func Default() Config {
	return Config{
		TunnelType:       model.Geneve,
		Transport:        model.ModeOverlay,
		DirectRoutes:     model.RoutesNode,
		Encryption:       EncryptionNone,
		EncryptionStrict: true,
		WireGuardPort:    51871,
		Datapath:         DatapathSystem,
		EgressMasquerade: true,
		ExternalIPs:      true,

		EstablishedConnections: EstablishedStop,
		DNSServers:             []string{"kube-system/kube-dns"},
		PeerProbes:             true,

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
	// Live settings take effect in a running agent; the others need a restart of the agent.
	Live bool
}

// Diff lists the settings that differ between two configurations, in the order of the documentation.
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

// ApplyLive returns the running configuration with the live settings of next; the other settings stay until a restart.
// Both configurations must come from this package's parser.
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
