package admin

import (
	"context"
	"encoding/json"
	"net/http"

	"golang.org/x/mod/sumdb/note"

	"countersign/audit"
)

// Verification is the body of a request to verify the log.
type Verification struct {
	// Key is the public key that checkpoints must be signed with, as audit.pub has it.
	Key string `json:"key"`
	// Checkpoints are those that were got otherwise than from the store.
	Checkpoints []string `json:"checkpoints,omitempty"`
}

// maxVerification bounds the body of one, in bytes.
const maxVerification = 64 << 20

func (s *Server) verify(w http.ResponseWriter, r *http.Request) {
	var v Verification
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxVerification))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&v); err != nil {
		http.Error(w, "reading what to verify: "+err.Error(), http.StatusBadRequest)
		return
	}
	key, err := note.NewVerifier(v.Key)
	if err != nil {
		http.Error(w, "reading the public key: "+err.Error(), http.StatusBadRequest)
		return
	}
	signed := make([][]byte, len(v.Checkpoints))
	for i, c := range v.Checkpoints {
		signed[i] = []byte(c)
	}
	report, err := s.Audit.Verify(r.Context(), key, signed)
	if err != nil {
		s.fail(w, err)
		return
	}
	reply(w, report)
}

// Verify has the server check its log.
func (c *Client) Verify(ctx context.Context, v Verification) (report audit.Report, err error) {
	return report, c.do(ctx, http.MethodPost, "/v1/verify", v, &report)
}
