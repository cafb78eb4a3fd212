package sysdump

import (
	"encoding/json"
	"regexp"
	"strings"
)

// redacted stands for what was taken out.
const redacted = "REDACTED"

// dropped are the parts of objects that carry an application's own settings, or repeat the object.
var dropped = map[string]bool{
	"env": true, "envFrom": true, "command": true, "args": true, "volumes": true, "volumeMounts": true, "lifecycle": true,
	"livenessProbe": true, "readinessProbe": true, "startupProbe": true, "managedFields": true, "imagePullSecrets": true,
	"data": true, "binaryData": true, "stringData": true,
}

// keptAnnotations are the prefixes of annotations that matter to a network. Others may hold anything.
var keptAnnotations = []string{"weft.dev/", "service.kubernetes.io/", "endpoints.kubernetes.io/", "kubernetes.io/"}

// Objects takes secrets out of Kubernetes objects in JSON: the settings of applications, data, and annotations that are
// not of a network. Kept says that data stays, for Weft's own ConfigMap.
func Objects(text []byte, keepData bool) ([]byte, error) {
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		return nil, err
	}
	clean(v, keepData)
	out, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return nil, err
	}
	return Text(out), nil
}

// clean changes a decoded object in place.
func clean(v any, keepData bool) {
	switch v := v.(type) {
	case []any:
		for _, item := range v {
			clean(item, keepData)
		}
	case map[string]any:
		for key, value := range v {
			annotations, isMap := value.(map[string]any)
			switch {
			case dropped[key] && (key != "data" || !keepData):
				delete(v, key)
			case key == "annotations" && isMap:
				for name := range annotations {
					if !kept(name) {
						delete(annotations, name)
					}
				}
			default:
				clean(value, keepData)
			}
		}
	}
}

func kept(annotation string) bool {
	for _, prefix := range keptAnnotations {
		if strings.HasPrefix(annotation, prefix) {
			return true
		}
	}
	return false
}

// secrets are what credentials look like in texts; the first group stays.
var secrets = []*regexp.Regexp{
	regexp.MustCompile(`(?i)(\bbearer\s+)[^\s"']+`),
	regexp.MustCompile(`()eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+`), // a JSON web token
	regexp.MustCompile(`(?s)(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?-----END [A-Z ]*PRIVATE KEY-----`),
	regexp.MustCompile(`(://[^/\s:@]+:)[^@\s/]+@`),
	regexp.MustCompile(`(?i)((?:password|passwd|token|secret|api[-_]?key|credentials?)["']?\s*[=:]\s*["']?)[^\s"',}&]+`),
}

// Text takes what looks like a credential out of a text.
func Text(text []byte) []byte {
	for _, r := range secrets {
		text = r.ReplaceAll(text, []byte("${1}"+redacted))
	}
	return text
}
