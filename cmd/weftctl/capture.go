package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/weft-cni/weft/internal/cli"
	"github.com/weft-cni/weft/internal/terminal"
	"github.com/weft-cni/weft/internal/version"
	"github.com/weft-cni/weft/pkg/capture"
	"github.com/weft-cni/weft/pkg/report/api"
)

// lineSnapLen is how much of a packet is needed for a line: all headers, with extension headers and Geneve's options.
const lineSnapLen = 512

// stdout is the name of a file that means the standard output.
const stdout = "-"

func captureCommand(c *client) *cobra.Command {
	var request capture.Request
	var protocol, file string
	cmd := &cobra.Command{
		Use:   "capture POD|SERVICE|gateway|tunnel",
		Short: "Show packets at a pod's port, of a Service, at the node's gateway or in tunnels, or write them to a file",
		Long: "Shows a line for each packet: when, at which port, whether it goes to or comes from what is at the port, source and\n" +
			"destination by the names of pods, Services and nodes, and what it is. It ends when a bound is reached, or with Ctrl-C.\n\n" +
			"  POD       [pod/]NAMESPACE/NAME: what the pod sends and receives\n" +
			"  SERVICE   [service/]NAMESPACE/NAME: packets to and from the Service's addresses and its endpoints, at the ports of all\n" +
			"            pods of the node and at the gateway; where both ends are on the node, a packet is there before and after its\n" +
			"            translation\n" +
			"  gateway   what the node and hosts outside exchange with pods through weft0\n" +
			"  tunnel    what the node and other nodes send each other: the packets within the encapsulation, which --peer, --port and\n" +
			"            --protocol are about\n\n" +
			"-w writes pcapng, with whole packets and the names, for Wireshark and tcpdump; -w - writes it to the standard output. Nothing\n" +
			"in the switch or on the pod changes. A pod of a cluster is looked for on its node; for the others, name nodes with --node, or\n" +
			"all are asked. Capturing needs root on the node, or the permission to run commands in the agents' containers.",
		Args: cobra.ExactArgs(1),
		Example: "  kubectl weft capture shop/web\n" +
			"  kubectl weft capture shop/client --peer service/shop/web --protocol tcp\n" +
			"  kubectl weft capture service/dns/dns --port 53\n" +
			"  kubectl weft capture tunnel --node worker-1 --peer shop/web\n" +
			"  kubectl weft capture shop/web -w - | wireshark -k -i -",
		ValidArgsFunction: c.completeObjects(map[string]string{"pod/": "pods", "service/": "services"}),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.output.Check(); err != nil {
				return err
			}
			if file == stdout && terminal.Is(cmd.OutOrStdout()) {
				return errors.New("the standard output is a terminal, and -w - writes bytes: give a file, or a pipe to a program")
			}
			if request.At = args[0]; args[0] != capture.AtGateway && args[0] != capture.AtTunnel {
				request.Kind, request.At = c.object(args)
			}
			if request.Peer != "" {
				request.PeerKind, request.Peer = c.peer(request.Peer)
			}
			request.Protocol = capture.Protocol(strings.ToUpper(protocol))
			if request.SnapLen == 0 && file == "" {
				request.SnapLen = lineSnapLen
			}
			if _, err := request.Complete(); err != nil {
				return err
			}
			return captureTo(cmd, c, request, file)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&request.Peer, "peer", "", "only packets from or to this pod, Service, node, address or CIDR")
	flags.Uint16Var(&request.Port, "port", 0, "only packets from or to this port")
	flags.StringVar(&protocol, "protocol", "", "only TCP, UDP, SCTP or ICMP (of both families)")
	flags.StringVarP(&file, "write", "w", "", "write pcapng to this file; - is the standard output")
	flags.IntVarP(&request.Packets, "count", "c", capture.DefaultPackets, fmt.Sprintf("end after this many packets of a node, at most %d",
		capture.MaxPackets))
	flags.Int64Var(&request.Bytes, "bytes", capture.DefaultBytes, fmt.Sprintf("end after this many bytes of a node, at most %d",
		capture.MaxBytes))
	flags.DurationVar(&request.Time, "time", capture.DefaultTime, fmt.Sprintf("end after this time, at most %s", capture.MaxTime))
	flags.IntVar(&request.SnapLen, "snaplen", 0, fmt.Sprintf("keep this many bytes of each packet, %d to %d (default %d, with -w all)",
		capture.MinSnapLen, capture.MaxSnapLen, lineSnapLen))
	return cmd
}

// peer is what a user named as the peer, for the agent: an address and a CIDR stay as they are.
func (c *client) peer(text string) (kind, name string) {
	if _, err := netip.ParseAddr(text); err == nil {
		return "", text
	}
	if _, err := netip.ParsePrefix(text); err == nil {
		return "", text
	}
	return c.object([]string{text})
}

// source is an agent whose records are shown.
type source struct {
	node   string
	client api.Client
}

// sources are the agents to ask: that of this machine, of the nodes that were named, of a pod's node, or all.
func (c *client) sources(ctx context.Context, request capture.Request) ([]source, error) {
	if !c.remote() {
		return []source{{client: c.local()}}, nil
	}
	nodes := c.nodes
	if pod := request.Kind == "" || request.Kind == "pod"; pod && len(nodes) == 0 && request.At != capture.AtGateway &&
		request.At != capture.AtTunnel {
		namespace, name, ok := strings.Cut(request.At, "/")
		if !ok {
			namespace, name = c.namespace, request.At
		}
		var err error
		if nodes, err = c.cluster.NodesOf(ctx, namespace, name); err != nil {
			return nil, err
		}
		if len(nodes) == 0 && request.Kind == "pod" {
			return nil, fmt.Errorf("pod %s not found on a node", request.At)
		}
	}
	agents, err := c.cluster.Agents(ctx, nodes)
	if err != nil {
		return nil, err
	}
	if len(agents) > maxAtOnce {
		return nil, fmt.Errorf("a capture on %d nodes is too large: name at most %d of them with --node", len(agents), maxAtOnce)
	}
	var list []source
	for _, a := range agents {
		if a.Problem != "" {
			return nil, fmt.Errorf("node %s: %s", a.Node, a.Problem)
		}
		list = append(list, source{a.Node, api.Client{Dial: c.cluster.Dial(a.Pod)}})
	}
	return list, nil
}

// captureTo shows what agents send until all captures have ended.
func captureTo(cmd *cobra.Command, c *client, request capture.Request, file string) (err error) {
	sources, err := c.sources(cmd.Context(), request)
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	if file != "" && file != stdout {
		f, err := os.OpenFile(file, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600) // packets may have secrets
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		out = f
	}
	show := shower{out: out, errs: cmd.ErrOrStderr(), format: c.output, many: len(sources) > 1}
	if file != "" {
		if show.file, err = capture.NewWriter(out, "weftctl "+version.Get().Version); err != nil {
			return err
		}
	}
	group, ctx := errgroup.WithContext(cmd.Context())
	for _, s := range sources {
		group.Go(func() error {
			stream := stream{shower: &show, node: s.node, names: capture.Names{}}
			err := s.client.Capture(ctx, request, stream.record)
			if err == nil || ctx.Err() != nil && cmd.Context().Err() != nil {
				return nil //nolint:nilerr // ended by a bound, or by the user
			}
			if s.node != "" {
				err = fmt.Errorf("node %s: %w", s.node, err)
			}
			return err
		})
	}
	err = group.Wait()
	show.summary(cmd.Context().Err() != nil && err == nil)
	if err == nil && show.failed {
		return cli.ExitError{Code: cli.CannotAsk} // the summary has said why
	}
	return err
}

// timeFormat is that of lines.
const timeFormat = "15:04:05.000000"

// packetLine is a packet as -o json shows it, one object a line.
type packetLine struct {
	Node string    `json:"node,omitempty"`
	Time time.Time `json:"time"`
	// At is the pod, "gateway" or "tunnel", To whether the packet goes there.
	At string `json:"at"`
	To bool   `json:"to"`
	// Source and Destination are addresses, with ports where there are; the names have the names of pods, Services and
	// nodes.
	Source          string `json:"source"`
	Destination     string `json:"destination"`
	SourceName      string `json:"sourceName"`
	DestinationName string `json:"destinationName"`
	Protocol        string `json:"protocol"`
	Info            string `json:"info"`
	Length          int    `json:"length"`
}

func (p packetLine) write(w io.Writer, node bool) error {
	direction := "from"
	if p.To {
		direction = "to  "
	}
	at := p.At
	if node {
		at = p.Node + " " + at
	}
	ends := ""
	if p.SourceName != "" {
		ends = p.SourceName + " > " + p.DestinationName + "  "
	}
	_, err := fmt.Fprintf(w, "%s  %s %s  %s%s\n", p.Time.Local().Format(timeFormat), direction, at, ends, p.Info)
	return err
}
