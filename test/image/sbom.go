package main

import (
	"bytes"
	"cmp"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// The parts of SPDX 2.3 (ISO/IEC 5962) that a release has.
type spdxDocument struct {
	Version       string             `json:"spdxVersion"`
	DataLicense   string             `json:"dataLicense"`
	ID            string             `json:"SPDXID"`
	Name          string             `json:"name"`
	Namespace     string             `json:"documentNamespace"`
	Creation      spdxCreation       `json:"creationInfo"`
	Packages      []spdxPackage      `json:"packages"`
	Relationships []spdxRelationship `json:"relationships"`
	Licences      []spdxLicence      `json:"hasExtractedLicensingInfos"`
}

type spdxCreation struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

type spdxPackage struct {
	ID        string    `json:"SPDXID"`
	Name      string    `json:"name"`
	Version   string    `json:"versionInfo"`
	Download  string    `json:"downloadLocation"`
	Analyzed  bool      `json:"filesAnalyzed"`
	Declared  string    `json:"licenseDeclared"`
	Concluded string    `json:"licenseConcluded"`
	Copyright string    `json:"copyrightText"`
	Source    string    `json:"sourceInfo,omitempty"`
	Refs      []spdxRef `json:"externalRefs,omitempty"`
}

type spdxRef struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type spdxRelationship struct {
	Element string `json:"spdxElementId"`
	Type    string `json:"relationshipType"`
	Related string `json:"relatedSpdxElement"`
}

type spdxLicence struct {
	ID   string `json:"licenseId"`
	Text string `json:"extractedText"`
	Name string `json:"name"`
}

const (
	spdxRoot    = "SPDXRef-weft"
	noAssertion = "NOASSERTION"
)

var notID = regexp.MustCompile(`[^A-Za-z0-9.-]+`)

// goModule is a module that a program is built from, and its licence.
type goModule struct{ path, version, licence string }

// newSBOM lists the Debian packages and Go modules of a release with their licences' texts.
func newSBOM(version, digest string, created time.Time, packages []debPackage, modules []goModule) ([]byte, error) {
	doc := spdxDocument{
		Version: "SPDX-2.3", DataLicense: "CC0-1.0", ID: "SPDXRef-DOCUMENT", Name: "weft-" + version,
		Namespace: "https://weft.io/spdx/weft-" + version + "-" + strings.TrimPrefix(digest, "sha256:"),
		Creation:  spdxCreation{created.UTC().Format(time.RFC3339), []string{"Tool: weft-image"}},
		Packages: []spdxPackage{{
			ID: spdxRoot, Name: "weft", Version: version, Download: noAssertion, Declared: "Apache-2.0",
			Concluded: "Apache-2.0", Copyright: noAssertion,
			Refs: []spdxRef{{"PACKAGE-MANAGER", "purl", "pkg:oci/weft@" + digest}},
		}},
		Relationships: []spdxRelationship{{"SPDXRef-DOCUMENT", "DESCRIBES", spdxRoot}},
	}
	add := func(kind, name, version, licence, purl, source string) {
		id := kind + "-" + notID.ReplaceAllString(name+"-"+version, "-")
		reference := "LicenseRef-" + id
		doc.Licences = append(doc.Licences, spdxLicence{reference, licence, "licence of " + name})
		doc.Packages = append(doc.Packages, spdxPackage{
			ID: "SPDXRef-" + id, Name: name, Version: version, Download: noAssertion, Declared: reference,
			Concluded: noAssertion, Copyright: noAssertion, Source: source,
			Refs: []spdxRef{{"PACKAGE-MANAGER", "purl", purl}},
		})
		doc.Relationships = append(doc.Relationships, spdxRelationship{spdxRoot, "CONTAINS", "SPDXRef-" + id})
	}
	seen := map[string]bool{}
	for _, p := range packages {
		licence, err := p.licence()
		if err != nil {
			return nil, fmt.Errorf("the licence of package %s: %w", p.name, err)
		}
		add("deb-"+p.arch, p.name, p.version, licence,
			fmt.Sprintf("pkg:deb/debian/%s@%s?arch=%s", p.name, strings.ReplaceAll(p.version, "+", "%2B"), p.arch),
			"built from Debian's source package "+p.source)
	}
	for _, m := range modules {
		if !seen[m.path+m.version] {
			add("go", m.path, m.version, m.licence, "pkg:golang/"+m.path+"@"+m.version, "")
		}
		seen[m.path+m.version] = true
	}
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", " ")
	err := encoder.Encode(doc)
	return text.Bytes(), err
}

var licenceFile = regexp.MustCompile(`(?i)^(licen[sc]e|copying|notice)`)

// goModules are the modules that programs were built from, by what the go command wrote into them. The licences are in
// the module cache, which the modules in these directories lead to.
func goModules(ctx context.Context, programs, moduleDirs []string) ([]goModule, error) {
	dirs := map[string]string{} // by path@version
	for _, dir := range moduleDirs {
		cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Path}}@{{.Version}} {{.Dir}}", "all")
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=readonly")
		list, err := output(cmd)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(list) {
			if id, where, ok := strings.Cut(strings.TrimSpace(line), " "); ok && where != "" {
				dirs[id] = where
			}
		}
	}
	found := map[string]goModule{}
	for _, program := range programs {
		info, err := buildinfo.ReadFile(program)
		if err != nil {
			return nil, err
		}
		for _, m := range info.Deps {
			id := m.Path + "@" + m.Version
			if _, ok := found[id]; ok || m.Replace != nil {
				continue
			}
			licence, err := licenceOf(dirs[id])
			if err != nil {
				return nil, fmt.Errorf("the licence of module %s: %w", id, err)
			}
			found[id] = goModule{m.Path, m.Version, licence}
		}
	}
	return slices.SortedFunc(maps.Values(found), func(a, b goModule) int {
		return cmp.Or(cmp.Compare(a.path, b.path), cmp.Compare(a.version, b.version))
	}), nil
}

// licenceOf joins the files of licences in a directory.
func licenceOf(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	var texts []string
	for _, e := range entries {
		if e.IsDir() || !licenceFile.MatchString(e.Name()) {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return "", err
		}
		texts = append(texts, e.Name()+":\n"+string(data))
	}
	if len(texts) == 0 {
		return "", fmt.Errorf("no file in %s has one", dir)
	}
	return strings.Join(texts, "\n"), nil
}
