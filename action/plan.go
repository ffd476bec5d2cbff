package action

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
)

// Plan is what one tool call will do: the Actions, in the order in which they
// will be sent.
type Plan struct {
	Tool    string   `json:"tool"`
	Actions []Action `json:"actions"`
}

// ReadOnly reports whether no Action of the plan can change a cluster.
func (p Plan) ReadOnly() bool {
	for _, a := range p.Actions {
		if !a.ReadOnly() {
			return false
		}
	}
	return true
}

// Runs reports whether some Action of the plan runs a command, whose output is its answer.
func (p Plan) Runs() bool {
	return slices.ContainsFunc(p.Actions, func(a Action) bool { return a.Subresource == Exec })
}

// Digest is the SHA-256 of the plan's canonical form, as "sha256:<hex>". Two
// plans have the same digest exactly when they would send the same requests in
// the same order: the order of keys and the white space that a caller or a
// manifest happened to use do not count, everything else does.
//
// A digest of a plan that carries a Secret's values would let anybody who reads
// the log guess short ones; with a key the digest is "hmac-sha256:<hex>" instead,
// and only the holder of the key can compare.
func (p Plan) Digest(key []byte) (string, error) { return digest(key, "countersign.plan.v1", p) }

// Secret reports whether any request of the plan is about Secrets.
func (p Plan) Secret() bool {
	for _, a := range p.Actions {
		if a.Resource.GroupResource() == "secrets" {
			return true
		}
	}
	return false
}

// Canonical encodes a value as JSON with sorted object keys, no insignificant
// white space and no HTML escaping. A number is written the shortest way.
func Canonical(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encoding canonical form: %w", err)
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

// digest hashes the domain before the value, so that a digest of one kind of
// thing can never be taken for a digest of another.
func digest(key []byte, domain string, v any) (string, error) {
	data, err := Canonical(v)
	if err != nil {
		return "", err
	}
	h, name := sha256.New(), "sha256:"
	if key != nil {
		h, name = hmac.New(sha256.New, key), "hmac-sha256:"
	}
	h.Write([]byte(domain))
	h.Write([]byte{'\n'})
	h.Write(data)
	return name + hex.EncodeToString(h.Sum(nil)), nil
}
