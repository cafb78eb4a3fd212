// Package scenario runs scenario files: Kubernetes objects, and what becomes of packets. The same file runs on the
// packet interpreter (pkg/trace), which needs no privileges and takes milliseconds, and on real switches in the lab
// (integration tests). README.md describes the files.
//
// Everything runs on the test's goroutine.
package scenario

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/txtar"
	"sigs.k8s.io/yaml"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/trace/walk"
	"github.com/weft-cni/weft/test/lab"
)

// Scenario is a scenario file.
type Scenario struct {
	archive  *txtar.Archive
	families []lab.Family
	nodes    int
	steps    []step
}

// step is a line of the section steps: a change of the objects, or packets and their expected verdict.
type step struct {
	line    string
	change  string // apply or delete
	what    string // the section, or KIND NAMESPACE/NAME
	from    string
	to      target
	verdict verdict
}

// target is where packets are sent.
type target struct {
	name     string // a pod, a Service or a node; empty for an address
	addr     netip.Addr
	port     uint16
	protocol model.Protocol
}

// verdict is what becomes of the packets of new connections.
type verdict struct {
	kind outcome
	// reason is that of the flow that drops; empty outside of switches.
	reason string
	// pods are all that some connection reaches, sorted.
	pods []string
	// source is who the pods see as client; empty is not compared.
	source string
	// sticky: all connections of a client go to the same pod.
	sticky bool
	// also is the verdict of other connections of the same step; nil when all have one.
	also *verdict
	// preview is the verdict if the staged policies were enforced; empty where none is staged.
	preview walk.PolicyVerdict
}

type outcome string

const (
	reaches outcome = "reaches"
	refused outcome = "refused"
	dropped outcome = "dropped"
)

func (v verdict) String() string {
	text := string(v.kind)
	switch {
	case v.kind == dropped && v.reason != "":
		text += " (" + v.reason + ")"
	case v.sticky:
		text += " one of " + strings.Join(v.pods, ", ")
	case v.kind == reaches:
		text += " " + strings.Join(v.pods, ", ")
	}
	if v.source != "" {
		text += " as " + v.source
	}
	if v.also != nil {
		text += " or " + v.also.String()
	}
	return text + wouldBe(v.preview)
}

// wouldBe is what a verdict ends with where there are staged policies.
func wouldBe(v walk.PolicyVerdict) string {
	if v == "" {
		return ""
	}
	return "; would be " + string(v)
}

// Read reads a scenario file.
func Read(file string) (*Scenario, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read scenario: %w", err)
	}
	s := &Scenario{archive: txtar.Parse(data), families: []lab.Family{lab.IPv4, lab.IPv6}, nodes: 2}
	if err := s.parse(); err != nil {
		return nil, fmt.Errorf("read scenario %s: %w", file, err)
	}
	return s, nil
}

func (s *Scenario) parse() error {
	for line := range strings.Lines(string(s.archive.Comment)) {
		words := strings.Fields(line)
		switch {
		case len(words) > 1 && words[0] == "families:":
			s.families = nil
			for _, word := range words[1:] {
				s.families = append(s.families, lab.Family(word))
			}
		case len(words) == 2 && words[0] == "nodes:":
			n, err := strconv.Atoi(words[1])
			if err != nil {
				return fmt.Errorf("%q: %w", line, err)
			}
			s.nodes = n
		}
	}
	steps, ok := s.section("steps")
	if _, objects := s.section("objects.yaml"); !ok || !objects {
		return fmt.Errorf("sections objects.yaml and steps are required")
	}
	for line := range strings.Lines(steps) {
		line, _, _ = strings.Cut(strings.TrimSpace(line), "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		next, err := parseStep(line)
		if err != nil {
			return fmt.Errorf("step %q: %w", line, err)
		}
		if next.change == "apply" {
			if _, ok := s.section(next.what); !ok {
				return fmt.Errorf("step %q: no such section", line)
			}
		}
		s.steps = append(s.steps, next)
	}
	return nil
}

func (s *Scenario) section(name string) (string, bool) {
	for _, f := range s.archive.Files {
		if f.Name == name {
			return string(f.Data), true
		}
	}
	return "", false
}

func parseStep(line string) (step, error) {
	s := step{line: line}
	words := strings.Fields(line)
	switch {
	case words[0] == "apply" && len(words) == 2, words[0] == "delete" && len(words) == 3:
		s.change, s.what = words[0], strings.Join(words[1:], " ")
		return s, nil
	case len(words) < 4 || words[1] != "->":
		return s, fmt.Errorf("want FROM -> TO:PORT VERDICT, apply SECTION or delete KIND NAMESPACE/NAME")
	}
	s.from = words[0]
	var err error
	if s.to, err = parseTarget(words[2]); err == nil {
		s.verdict, err = parseVerdict(words[3:])
	}
	return s, err
}

// parseTarget parses NAME:PORT and ADDRESS:PORT, with /udp or /sctp where it is not TCP.
func parseTarget(text string) (target, error) {
	t := target{protocol: model.TCP}
	at := strings.LastIndex(text, ":")
	if at < 0 {
		return t, fmt.Errorf("target %q has no port", text)
	}
	port, protocol, ok := strings.Cut(text[at+1:], "/")
	if ok {
		t.protocol = model.Protocol(strings.ToUpper(protocol))
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil || t.protocol.Number() == 0 {
		return t, fmt.Errorf("target %q: want PORT, PORT/udp or PORT/sctp after the colon", text)
	}
	t.port, t.name = uint16(number), text[:at]
	if addr, err := netip.ParseAddr(strings.Trim(t.name, "[]")); err == nil {
		t.name, t.addr = "", addr
	}
	return t, nil
}

// parseVerdict parses reaches [one of] POD, POD [as CLIENT]; refused; dropped [(REASON)]; and such verdicts with or.
// Each may end with "; would be allowed" or "; would be denied".
func parseVerdict(words []string) (verdict, error) {
	if text, preview, ok := strings.Cut(strings.Join(words, " "), "; would be "); ok {
		v, err := parseVerdict(strings.Fields(text))
		v.preview = walk.PolicyVerdict(preview)
		if v.preview != walk.Allowed && v.preview != walk.Denied {
			err = errors.Join(err, fmt.Errorf("would be %q: want allowed or denied", preview))
		}
		return v, err
	}
	if i := slices.Index(words, "or"); i > 0 && i < len(words)-1 {
		v, err := parseVerdict(words[:i])
		also, alsoErr := parseVerdict(words[i+1:])
		v.also = &also
		return v, errors.Join(err, alsoErr)
	}
	v := verdict{kind: outcome(words[0])}
	rest := words[1:]
	switch v.kind {
	case refused:
	case dropped:
		if len(rest) == 1 {
			v.reason, rest = strings.Trim(rest[0], "()"), nil
		}
	case reaches:
		if len(rest) > 2 && rest[0] == "one" && rest[1] == "of" {
			v.sticky, rest = true, rest[2:]
		}
		if i := slices.Index(rest, "as"); i >= 0 && i == len(rest)-2 {
			v.source, rest = rest[i+1], rest[:i]
		}
		for _, word := range rest {
			v.pods = append(v.pods, strings.TrimSuffix(word, ","))
		}
		slices.Sort(v.pods)
		if rest = nil; len(v.pods) == 0 {
			return v, fmt.Errorf("reaches which pods?")
		}
	default:
		return v, fmt.Errorf("verdict %q: want reaches, refused or dropped", words[0])
	}
	if len(rest) > 0 {
		return v, fmt.Errorf("unknown words %q", rest)
	}
	return v, nil
}

// documents are the YAML documents of the objects as they are now, by "kind namespace/name".
type documents map[string]string

// add adds documents, or replaces those of the same objects.
func (d documents) add(text string) error {
	for _, one := range strings.Split("\n"+text, "\n---") {
		var head struct {
			Kind     string
			Metadata struct{ Namespace, Name string }
		}
		if err := yaml.Unmarshal([]byte(one), &head); err != nil {
			return err
		}
		if head.Kind == "" {
			continue // comments
		}
		key := strings.ToLower(head.Kind) + " " + head.Metadata.Name
		if head.Metadata.Namespace != "" {
			key = strings.ToLower(head.Kind) + " " + head.Metadata.Namespace + "/" + head.Metadata.Name
		}
		d[key] = strings.TrimSpace(one) + "\n"
	}
	return nil
}

// text is all documents as one.
func (d documents) text() string {
	var list []string
	for _, key := range slices.Sorted(maps.Keys(d)) {
		list = append(list, d[key])
	}
	return strings.Join(list, "---\n")
}
