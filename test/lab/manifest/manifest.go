// Package manifest reads ordinary Kubernetes manifests for a lab: strictly, with file and line of everything that is
// wrong, all of it at once. Workloads become the pods that a cluster would run, placed on nodes.
//
// Load is a function of the files and its options; the package keeps no state.
package manifest

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weft-cni/weft/pkg/kube/cnp"
)

// Set is what the manifests ask for. Everything has its namespace, every pod its node.
type Set struct {
	Namespaces []*corev1.Namespace
	Nodes      []*corev1.Node
	Pods       []*corev1.Pod
	Services   []*corev1.Service
	// Slices are those that the manifests spell out.
	Slices   []*discoveryv1.EndpointSlice
	Policies []*networkingv1.NetworkPolicy
	// Warnings are what is allowed and has no effect: selectors that match no pod, ports that no pod has, and what a lab
	// does not do.
	Warnings []Problem
	// ClusterPolicies are those of the cluster.
	ClusterPolicies []*cnp.ClusterNetworkPolicy
	// Ignored are the kinds that were there and mean nothing to a network.
	Ignored []string
}

// Options say what the manifests are for.
type Options struct {
	// Nodes is how many nodes to make where the manifests have none; 0 means DefaultNodes.
	Nodes int
	// ServiceCIDRs are where the cluster IPs have to be that the manifests name; without any, they may be anywhere.
	ServiceCIDRs []netip.Prefix
	// Input is what the path Stdin stands for.
	Input []byte
	// Kustomizations are directories that are built as `kubectl kustomize` does, and OnRead, unless it is nil, is told
	// each file that this asks for.
	Kustomizations []string
	OnRead         func(file string)
}

// Stdin is the path of Options.Input.
const Stdin = "-"

// Bounds of a lab.
const (
	DefaultNodes = 2
	MaxNodes     = 50
)

// Problem is one thing that is wrong, with its place.
type Problem struct {
	File string
	Line int // 0 when it is the file as a whole
	Text string
}

func (p Problem) Error() string {
	if p.Line == 0 {
		return fmt.Sprintf("%s: %s", p.File, p.Text)
	}
	return fmt.Sprintf("%s:%d: %s", p.File, p.Line, p.Text)
}

// Problems is everything that is wrong, in the order of the files.
type Problems []Problem

func (p Problems) Error() string {
	if len(p) == 1 {
		return p[0].Error()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d problems:", len(p))
	for _, one := range p {
		b.WriteString("\n  " + one.Error())
	}
	return b.String()
}

// Load reads files, all .yaml, .yml and .json files below directories, and what kustomizations build. When anything is
// wrong, the error is a Problems and nothing else is returned.
func Load(paths []string, opt Options) (Set, error) {
	files, err := Files(paths)
	if err != nil {
		return Set{}, err
	}
	l := newLoader(opt)
	for _, file := range files {
		if file == Stdin {
			l.read("standard input", opt.Input)
			continue
		}
		data, err := os.ReadFile(file)
		if err != nil {
			return Set{}, fmt.Errorf("read manifests: %w", err)
		}
		l.read(file, data)
	}
	for _, dir := range opt.Kustomizations {
		text, err := kustomize(dir, opt.OnRead)
		if err != nil {
			l.problems = append(l.problems, Problem{File: dir, Text: err.Error()})
			continue
		}
		l.read("kustomize "+dir, text)
	}
	return l.finish()
}

// Parse is Load of a text that is in no file; name stands for the file in problems.
func Parse(name string, text []byte, opt Options) (Set, error) {
	l := newLoader(opt)
	l.read(name, text)
	return l.finish()
}

// Files lists the files that Load reads of the paths, in order.
func Files(paths []string) ([]string, error) {
	var files []string
	for _, path := range paths {
		found, err := filesOf(path)
		if err != nil {
			return nil, fmt.Errorf("read manifests: %w", err)
		}
		if len(found) == 0 {
			return nil, fmt.Errorf("read manifests: %s has no .yaml, .yml or .json file", path)
		}
		files = append(files, found...)
	}
	return files, nil
}

func filesOf(path string) (files []string, err error) {
	if path == Stdin {
		return []string{path}, nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	err = filepath.WalkDir(path, func(file string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone since it was listed, as editors do
		}
		if err != nil {
			return err
		}
		hidden := strings.HasPrefix(d.Name(), ".") && file != path
		if d.IsDir() && hidden {
			return fs.SkipDir
		}
		if !d.IsDir() && !hidden && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(file)) {
			files = append(files, file)
		}
		return nil
	})
	return files, err
}

// place is where in the files something is said.
type place struct {
	doc  *document
	path string
}

// at is a place below.
func (p place) at(format string, args ...any) place {
	path := fmt.Sprintf(format, args...)
	if p.path != "" && !strings.HasPrefix(path, "[") {
		path = "." + path
	}
	return place{p.doc, p.path + path}
}

func (p place) String() string {
	return fmt.Sprintf("%s:%d", p.doc.file, p.doc.line(p.path))
}

// loader collects what the files say and everything that is wrong with it.
type loader struct {
	opt      Options
	set      Set
	problems Problems
	// names are the places of all objects by kind, namespace and name.
	names map[string]place
	// warnings are found by checks, which wait for the pods to be known.
	warnings []Problem
	checks   []func()
	// workloads wait for the nodes to be known.
	workloads []workload
	// controlled take in the pods that a controller has made, unless its workload is in the manifests, too.
	controlled []func()
	// unknown are the objects of kinds that a lab does not know, by kind.
	unknown map[string][]place
	// described says that the manifests have Nodes; otherwise the lab's own stand in for those of a cluster.
	described bool
}

// problem is one at this place. The text names object and field, so that it can be read without the file.
func (p place) problem(format string, args ...any) Problem {
	text := fmt.Sprintf(format, args...)
	if what := strings.TrimSpace(p.doc.object + " " + p.path); what != "" {
		text = what + ": " + text
	}
	return Problem{File: p.doc.file, Line: p.doc.line(p.path), Text: text}
}

// wrong notes a mistake: the manifests are refused.
func (l *loader) wrong(p place, format string, args ...any) {
	l.problems = append(l.problems, p.problem(format, args...))
}

// warn notes what is allowed and has no effect.
func (l *loader) warn(p place, format string, args ...any) {
	l.warnings = append(l.warnings, p.problem(format, args...))
}

// claim notes an object's name and tells whether it is the first of its kind.
func (l *loader) claim(p place, kind, namespace, name string) bool {
	key := kind + " " + name
	if namespace != "" {
		key = kind + " " + namespace + "/" + name
	}
	if other, ok := l.names[key]; ok {
		l.wrong(p, "there are two of %s; the other is at %s", key, other)
		return false
	}
	l.names[key] = p
	return true
}

func newLoader(opt Options) *loader {
	return &loader{opt: opt, names: map[string]place{}, unknown: map[string][]place{}}
}

func (l *loader) finish() (Set, error) {
	l.finishNodes()
	for _, take := range l.controlled {
		take()
	}
	for _, w := range l.workloads {
		l.expand(w)
	}
	l.finishNamespaces()
	for _, check := range l.checks {
		check()
	}
	l.warnOfUnknown()
	if len(l.problems) > 0 {
		return Set{}, Problems(sorted(l.problems))
	}
	if len(l.set.Pods) == 0 {
		text := "the manifests have no pods"
		if unknown := slices.Sorted(maps.Keys(l.unknown)); len(unknown) > 0 {
			text += "; a lab does not know " + strings.Join(unknown, ", ")
		}
		return Set{}, errors.New(text)
	}
	l.set.Warnings = sorted(l.warnings)
	slices.Sort(l.set.Ignored)
	l.set.Ignored = slices.Compact(l.set.Ignored)
	return l.set, nil
}
