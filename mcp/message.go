package mcp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"unicode"

	mcpgo "github.com/mark3labs/mcp-go/mcp"
	kjson "sigs.k8s.io/json"
)

// maxDepth bounds how deep JSON may nest before anything parses it.
const maxDepth = 64

// message is what the guard reads of a JSON-RPC message.
type message struct {
	ID     json.RawMessage
	Method string
	// Name is that of the tool in a call.
	Name string
	// modern says that the body names the revision that it is written in, as those
	// do that have no sessions; version is that name.
	modern  bool
	version string
}

// members are those of JSON-RPC 2.0. mcp-go matches names in any case and takes
// the last of two, so a message that means two things to two readers is refused.
var members = []string{"jsonrpc", "id", "method", "params", "result", "error"}

// parseMessage checks the outside of a message: one object, no batch, no
// excessive nesting, and no name twice or in another case. Arguments are
// checked by the tool that they are for.
func parseMessage(httpMethod string, body []byte) (message, error) {
	var m message
	if httpMethod != http.MethodPost {
		return m, nil
	}
	trimmed := bytes.TrimLeft(body, " \t\r\n")
	if len(trimmed) > 0 && trimmed[0] == '[' {
		return m, errors.New("batches are not served: send one message at a time")
	}
	if depth(body) > maxDepth {
		return m, errors.New("the message nests too deeply")
	}
	outer, err := object(body)
	if err != nil {
		return m, err
	}
	for name := range outer {
		if !slices.Contains(members, name) {
			return m, errors.New("the message has a member that JSON-RPC 2.0 does not know; names are case-sensitive")
		}
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(outer["method"], &m.Method); len(outer["method"]) > 0 && err != nil {
		return m, errors.New("method is not text")
	}
	m.ID = outer["id"]
	if params := bytes.TrimSpace(outer["params"]); len(params) > 0 && params[0] == '{' {
		inner, err := object(params)
		if err != nil {
			return m, err
		}
		if kjson.UnmarshalCaseSensitivePreserveInts(inner["name"], &m.Name) != nil {
			m.Name = "" // the library refuses what is no text
		}
		var meta map[string]json.RawMessage
		if raw := inner["_meta"]; len(raw) > 0 && string(raw) != "null" {
			if meta, err = object(raw); err != nil {
				return m, err
			}
		}
		var version json.RawMessage
		if version, m.modern = meta[mcpgo.MetaKeyProtocolVersion]; kjson.UnmarshalCaseSensitivePreserveInts(version, &m.version) != nil {
			m.version = ""
		}
	}
	return m, nil
}

// spelling is how the names that mcp-go reads, in whatever case, are written.
var spelling = map[string]string{
	"name": "name", "arguments": "arguments", "_meta": "_meta", "requestid": "requestId",
	"progresstoken": "progressToken", "cursor": "cursor", "uri": "uri",
}

// object decodes one level of an object and refuses names that are the same but for case.
func object(data []byte) (map[string]json.RawMessage, error) {
	var out map[string]json.RawMessage
	strict, err := kjson.UnmarshalStrict(data, &out)
	if err != nil {
		return nil, errors.New("the message is not a JSON object")
	}
	if len(strict) > 0 {
		return nil, errors.Join(strict...)
	}
	if out == nil {
		return nil, errors.New("the message is null where a JSON object is expected")
	}
	seen := make(map[string]bool, len(out))
	for name := range out {
		folded := strings.ToLower(strings.Map(fold, name))
		if seen[folded] {
			return nil, errors.New("the message has the same name twice, in different case")
		}
		seen[folded] = true
		if exact, known := spelling[folded]; known && name != exact {
			return nil, fmt.Errorf("the message says %q where %q is meant; names are case-sensitive", clip(name, 40), exact)
		}
	}
	return out, nil
}

// fold gives the letters one form that encoding/json takes for the same: not
// only A and a, but also ſ and s.
func fold(r rune) rune {
	first := r
	for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
		first = min(first, f)
	}
	return first
}

// depth is how deep a JSON text nests, without parsing it.
func depth(data []byte) int {
	deepest, level := 0, 0
	inString := false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{' || c == '[':
			level++
			deepest = max(deepest, level)
		case c == '}' || c == ']':
			level--
		}
	}
	return deepest
}
