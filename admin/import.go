package admin

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"time"

	"countersign/audit"
	"countersign/gate"
)

// maxImport bounds an emergency file, in bytes; the store has a bound of its own.
const maxImport = 100 << 20

func (s *Server) importRecords(w http.ResponseWriter, r *http.Request) {
	person, err := s.person(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	file, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxImport))
	if err != nil {
		http.Error(w, "reading the file: "+err.Error(), http.StatusBadRequest)
		return
	}
	done, err := s.Import(r.Context(), file, audit.Imported{By: person.String(), Time: time.Now().UTC()})
	if err != nil {
		s.fail(w, err)
		return
	}
	reply(w, done)
}

// Import has the server add the records of an emergency file to its log.
func (c *Client) Import(ctx context.Context, file []byte) (done gate.Imported, err error) {
	return done, c.do(ctx, http.MethodPost, "/v1/import", bytes.NewReader(file), &done)
}
