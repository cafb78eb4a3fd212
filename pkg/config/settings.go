package config

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/weft-cni/weft/pkg/model"
)

// Bounds of a pod's MTU: the minimum link MTU of RFC 791 and of RFC 8200, and the largest IP packet.
const (
	minMTU     = 576
	minIPv6MTU = 1280
	maxMTU     = 65535
)

// setting is one key of the file. Parser, Diff and documentation all use the table below and nothing else.
type setting struct {
	key     string
	allowed string
	live    bool
	// parse stores a JSON value. Its error holds details beyond "not allowed", or is errNotAllowed.
	parse func(c *Config, raw []byte) error
	// value returns the setting in a form that parse accepts.
	value func(c Config) any
}

// text is the setting's value as written in the file.
func (s setting) text(c Config) string {
	b, err := json.Marshal(s.value(c))
	if err != nil {
		panic(fmt.Sprintf("config: key %s: %v", s.key, err)) // only strings, numbers and booleans are ever encoded
	}
	return string(b)
}

var errNotAllowed = errors.New("not allowed")

var settings = []setting{
	{
		key: "tunnelType", live: true, allowed: oneOf(model.TunnelTypes),
		parse: func(c *Config, raw []byte) error { return choose(&c.TunnelType, raw, model.TunnelTypes) },
		value: func(c Config) any { return c.TunnelType },
	}, {
		key: "transport", live: true, allowed: oneOf(model.Modes),
		parse: func(c *Config, raw []byte) error { return choose(&c.Transport, raw, model.Modes) },
		value: func(c Config) any { return c.Transport },
	}, {
		key: "directRoutes", live: true, allowed: oneOf(directRoutes),
		parse: func(c *Config, raw []byte) error { return choose(&c.DirectRoutes, raw, directRoutes) },
		value: func(c Config) any { return c.DirectRoutes },
	}, {
		key: "encryption", live: true, allowed: oneOf(encryptions),
		parse: func(c *Config, raw []byte) error { return choose(&c.Encryption, raw, encryptions) },
		value: func(c Config) any { return c.Encryption },
	}, {
		key: "encryptionStrict", live: true, allowed: "true or false",
		parse: func(c *Config, raw []byte) error { return json.Unmarshal(raw, &c.EncryptionStrict) },
		value: func(c Config) any { return c.EncryptionStrict },
	}, {
		key: "wireguardPort", live: true, allowed: "a UDP port, 1 to 65535",
		parse: parseWireGuardPort,
		value: func(c Config) any { return c.WireGuardPort },
	}, {
		key: "datapath", allowed: oneOf(datapaths),
		parse: func(c *Config, raw []byte) error { return choose(&c.Datapath, raw, datapaths) },
		value: func(c Config) any { return c.Datapath },
	}, {
		key: "mtu", live: true,
		allowed: fmt.Sprintf("0, or %d to %d (at least %d where pods have IPv6 addresses)", minMTU, maxMTU, minIPv6MTU),
		parse:   parseMTU,
		value:   func(c Config) any { return c.MTU },
	}, {
		key: "egressMasquerade", live: true, allowed: "true or false",
		parse: func(c *Config, raw []byte) error { return json.Unmarshal(raw, &c.EgressMasquerade) },
		value: func(c Config) any { return c.EgressMasquerade },
	}, {
		key: "nonMasqueradeCIDRs", live: true, allowed: "a list of IPv4 and IPv6 prefixes",
		parse: func(c *Config, raw []byte) error { return parsePrefixes(&c.NonMasqueradeCIDRs, raw) },
		value: func(c Config) any { return append([]netip.Prefix{}, c.NonMasqueradeCIDRs...) },
	}, {
		key: "serviceCIDRs", live: true, allowed: "a list of IPv4 and IPv6 prefixes",
		parse: func(c *Config, raw []byte) error { return parsePrefixes(&c.ServiceCIDRs, raw) },
		value: func(c Config) any { return append([]netip.Prefix{}, c.ServiceCIDRs...) },
	}, {
		key: "clusterCIDRs", live: true, allowed: "a list of IPv4 and IPv6 prefixes",
		parse: func(c *Config, raw []byte) error { return parsePrefixes(&c.ClusterCIDRs, raw) },
		value: func(c Config) any { return append([]netip.Prefix{}, c.ClusterCIDRs...) },
	}, {
		key: "externalIPs", live: true, allowed: "true or false",
		parse: func(c *Config, raw []byte) error { return json.Unmarshal(raw, &c.ExternalIPs) },
		value: func(c Config) any { return c.ExternalIPs },
	}, {
		key: "nodePortAddresses", live: true, allowed: `a list of IPv4 and IPv6 prefixes, or ["primary"]`,
		parse: parseNodePortAddresses,
		value: func(c Config) any { return append([]string{}, c.NodePortAddresses...) },
	}, {
		key: "establishedConnections", live: true, allowed: oneOf(established),
		parse: func(c *Config, raw []byte) error { return choose(&c.EstablishedConnections, raw, established) },
		value: func(c Config) any { return c.EstablishedConnections },
	}, {
		key: "dnsServers", live: true, allowed: `a list of Services, as "kube-system/kube-dns", and of IP addresses, with or without a port`,
		parse: parseDNSServers,
		value: func(c Config) any { return append([]string{}, c.DNSServers...) },
	}, {
		key: "apiServer", allowed: "a URL, https://HOST or https://HOST:PORT, or nothing",
		parse: parseAPIServer,
		value: func(c Config) any { return c.APIServer },
	}, {
		key: "ovsRunDir", allowed: "an absolute path without . and ..",
		parse: parseOVSRunDir,
		value: func(c Config) any { return c.OVSRunDir },
	}, {
		key: "healthAddr", allowed: "an IP address and a port, as 127.0.0.1:9470 or [::1]:9470",
		parse: parseHealthAddr,
		value: func(c Config) any { return c.HealthAddr },
	}, {
		key: "metricsAddr", allowed: "an IP address and a port, as [::]:9471 for all addresses, or nothing",
		parse: func(c *Config, raw []byte) error { return parseOptionalAddr(&c.MetricsAddr, raw) },
		value: func(c Config) any { return optionalAddr(c.MetricsAddr) },
	}, {
		key: "nodeHealthAddr", allowed: "an IP address and a port, as [::]:10256 for all addresses, or nothing",
		parse: func(c *Config, raw []byte) error { return parseOptionalAddr(&c.NodeHealthAddr, raw) },
		value: func(c Config) any { return optionalAddr(c.NodeHealthAddr) },
	}, {
		key: "peerProbes", live: true, allowed: "true or false",
		parse: func(c *Config, raw []byte) error { return json.Unmarshal(raw, &c.PeerProbes) },
		value: func(c Config) any { return c.PeerProbes },
	}, {
		key: "logLevel", live: true, allowed: oneOf(levels),
		parse: parseLevel,
		value: func(c Config) any { return strings.ToLower(c.LogLevel.String()) },
	}, {
		key: "logFormat", allowed: oneOf(logFormats),
		parse: func(c *Config, raw []byte) error { return choose(&c.LogFormat, raw, logFormats) },
		value: func(c Config) any { return c.LogFormat },
	},
}

var (
	directRoutes = []model.DirectRoutes{model.RoutesNode, model.RoutesNone}

	encryptions = []Encryption{EncryptionNone, EncryptionWireGuard}
	datapaths   = []Datapath{DatapathSystem, DatapathNetdev}
	established = []Established{EstablishedStop, EstablishedKeep}
	logFormats  = []LogFormat{LogText, LogJSON}
	levels      = []string{"debug", "info", "warn", "error"}
)

func oneOf[T ~string](values []T) string {
	words := make([]string, len(values))
	for i, v := range values {
		words[i] = string(v)
	}
	return strings.Join(words, ", ")
}

// choose stores one of the allowed values.
func choose[T ~string](dst *T, raw []byte, values []T) error {
	var v T
	if err := json.Unmarshal(raw, &v); err != nil {
		return err
	}
	if !slices.Contains(values, v) {
		return cmp.Or(didYouMean(v, values), errNotAllowed)
	}
	*dst = v
	return nil
}

func parseMTU(c *Config, raw []byte) error {
	var v int
	if err := json.Unmarshal(raw, &v); err != nil {
		return err
	}
	if v != 0 && (v < minMTU || v > maxMTU) {
		return errNotAllowed
	}
	c.MTU = v
	return nil
}

func parseWireGuardPort(c *Config, raw []byte) error {
	var v uint16
	if err := json.Unmarshal(raw, &v); err != nil {
		return err
	}
	if v == 0 {
		return errNotAllowed
	}
	c.WireGuardPort = v
	return nil
}

func parsePrefixes(dst *[]netip.Prefix, raw []byte) error {
	var words []string
	if err := json.Unmarshal(raw, &words); err != nil {
		return err
	}
	var wrong []string
	prefixes := make([]netip.Prefix, 0, len(words))
	for _, word := range words {
		p, err := netip.ParsePrefix(word)
		switch {
		case err != nil:
			wrong = append(wrong, fmt.Sprintf("invalid CIDR %q", word))
		case p.Addr().Is4In6():
			wrong = append(wrong, fmt.Sprintf("%q is IPv4 written as IPv6", word))
		case p != p.Masked():
			wrong = append(wrong, fmt.Sprintf("%q has host bits set; write %q", word, p.Masked().String()))
		default:
			prefixes = append(prefixes, p)
		}
	}
	if len(wrong) > 0 {
		return errors.New(strings.Join(wrong, "; "))
	}
	*dst = prefixes
	return nil
}

func parseNodePortAddresses(c *Config, raw []byte) error {
	var words []string
	if err := json.Unmarshal(raw, &words); err != nil {
		return err
	}
	if slices.Contains(words, PrimaryAddresses) && len(words) > 1 {
		return fmt.Errorf("%q must be the only entry", PrimaryAddresses)
	}
	if len(words) == 0 || words[0] != PrimaryAddresses {
		var prefixes []netip.Prefix
		if err := parsePrefixes(&prefixes, raw); err != nil {
			return err
		}
	}
	c.NodePortAddresses = words
	return nil
}

// serviceName is namespace/name: two DNS labels.
var serviceName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?/[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

func parseDNSServers(c *Config, raw []byte) error {
	var words []string
	if err := json.Unmarshal(raw, &words); err != nil {
		return err
	}
	for _, word := range words {
		if _, err := parseDNSAddr(word); err == nil {
			continue
		}
		if !serviceName.MatchString(word) {
			return fmt.Errorf("%q is neither namespace/name of a Service nor an IP address", word)
		}
	}
	c.DNSServers = words
	return nil
}

// parseDNSAddr reads a DNS server's address, with or without a port.
func parseDNSAddr(word string) (netip.AddrPort, error) {
	if addr, err := netip.ParseAddr(word); err == nil {
		return netip.AddrPortFrom(addr, model.DNSPort), checkDNSAddr(addr, model.DNSPort)
	}
	at, err := netip.ParseAddrPort(word)
	if err != nil {
		return at, err
	}
	return at, checkDNSAddr(at.Addr(), at.Port())
}

func checkDNSAddr(addr netip.Addr, port uint16) error {
	if port == 0 || addr.Is4In6() || addr.Zone() != "" || addr.IsUnspecified() || addr.IsMulticast() {
		return errNotAllowed
	}
	return nil
}

func parseAPIServer(c *Config, raw []byte) error {
	var v string
	if err := json.Unmarshal(raw, &v); err != nil {
		return err
	}
	if v != "" {
		u, err := url.Parse(v)
		if err != nil {
			return errNotAllowed // url's error repeats the value
		}
		if u.Scheme != "https" {
			return errors.New("the agent sends its token only over https")
		}
		if u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
			return errNotAllowed
		}
	}
	c.APIServer = v
	return nil
}

func parseOVSRunDir(c *Config, raw []byte) error {
	var v string
	if err := json.Unmarshal(raw, &v); err != nil {
		return err
	}
	if !filepath.IsAbs(v) || filepath.Clean(v) != v {
		return errNotAllowed
	}
	c.OVSRunDir = v
	return nil
}

func parseHealthAddr(c *Config, raw []byte) error {
	var v string
	if err := json.Unmarshal(raw, &v); err != nil {
		return err
	}
	addr, err := netip.ParseAddrPort(v)
	if err != nil || addr.Port() == 0 {
		return errNotAllowed
	}
	c.HealthAddr = addr
	return nil
}

// optionalAddr is the text of an address that may be left out.
func optionalAddr(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func parseOptionalAddr(dst *netip.AddrPort, raw []byte) error {
	var v string
	if err := json.Unmarshal(raw, &v); err != nil {
		return err
	}
	var addr netip.AddrPort
	if v != "" {
		var err error
		if addr, err = netip.ParseAddrPort(v); err != nil || addr.Port() == 0 {
			return errNotAllowed
		}
	}
	*dst = addr
	return nil
}

func parseLevel(c *Config, raw []byte) error {
	var v string
	if err := choose(&v, raw, levels); err != nil {
		return err
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(v)); err != nil {
		return err
	}
	c.LogLevel = level
	return nil
}
