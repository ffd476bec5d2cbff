package anchors

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"
)

const (
	// witnessTimeout bounds one request to a witness.
	witnessTimeout = 10 * time.Second
	// maxAnswer bounds what a witness answers, in bytes: a few lines.
	maxAnswer = 64 << 10
	// maxAttempts is how often a witness is asked in one turn. Twice will do, unless
	// somebody else tells it of the same log in between.
	maxAttempts = 3
)

// Witness is somebody else's server that signs a checkpoint if it continues what
// it has seen of this log before (C2SP tlog-witness). url is its submission
// prefix; key is its public key, as a vkey of the type cosignature/v1 (Ed25519).
func Witness(url, key string) (Anchor, error) {
	verifier, err := torchwood.NewCosignatureVerifier(key)
	if err != nil {
		return Anchor{}, fmt.Errorf("the key of the witness %s: %w; NAME+HASH+KEY of an Ed25519 cosignature key is expected, as its operator publishes it", url, err)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxResponseHeaderBytes = maxAnswer
	w := &witness{
		url: strings.TrimSuffix(url, "/") + "/add-checkpoint", verifier: verifier,
		client: &http.Client{
			Transport: transport, Timeout: witnessTimeout,
			// A witness that has moved is configured anew, not followed.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	return Anchor{Name: "witness:" + verifier.Name(), Put: w.put}, nil
}

type witness struct {
	url      string
	verifier note.Verifier
	client   *http.Client
	// seen is the size that the witness last signed. It need not survive a restart:
	// a witness that is told another one answers with what it has.
	seen uint64
}

func (w *witness) put(ctx context.Context, h Head) ([]byte, error) {
	for range maxAttempts {
		status, body, err := w.ask(ctx, h)
		if err != nil {
			return nil, err
		}
		switch status {
		case http.StatusOK:
			line, err := w.verified(h, body)
			if err == nil {
				w.seen = h.Size
			}
			return line, err
		case http.StatusConflict:
			size, err := strconv.ParseUint(strings.TrimSuffix(string(body), "\n"), 10, 63)
			switch {
			case w.seen == h.Size && (err != nil || size == h.Size):
				return nil, fmt.Errorf("the witness has signed another log of %d records under this name: this log was rewritten, or another server has its key", h.Size)
			case err != nil:
				return nil, fmt.Errorf("the witness answers 409 without the size that it has seen, but %s", quote(body))
			case size > h.Size:
				return nil, fmt.Errorf("the witness has seen %d records of this log, which has %d: it was cut or put back to an older state, or another server has its key", size, h.Size)
			}
			w.seen = size
		default:
			return nil, w.refusal(h, status, body)
		}
	}
	return nil, fmt.Errorf("the witness contradicts itself about how much of this log it has seen: after %d answers it says %d records", maxAttempts, w.seen)
}

// ask sends one add-checkpoint request.
func (w *witness) ask(ctx context.Context, h Head) (status int, body []byte, err error) {
	var request bytes.Buffer
	fmt.Fprintf(&request, "old %d\n", w.seen)
	if w.seen > 0 {
		proof, err := h.Prove(w.seen)
		if err != nil {
			return 0, nil, fmt.Errorf("proving that the log has grown from %d records: %w", w.seen, err)
		}
		for _, hash := range proof {
			fmt.Fprintln(&request, base64.StdEncoding.EncodeToString(hash[:]))
		}
	}
	fmt.Fprintf(&request, "\n%s", h.Note)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, &request)
	if err != nil {
		return 0, nil, err
	}
	resp, err := w.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return 0, nil, fmt.Errorf("reading the witness's answer: %w", err)
	}
	if len(body) > maxAnswer {
		return 0, nil, fmt.Errorf("the witness answers with more than %d bytes: is %s a witness?", maxAnswer, w.url)
	}
	return resp.StatusCode, body, nil
}

// verified returns the witness's signature as a line for the note. Signatures of
// other keys in the answer are left out.
func (w *witness) verified(h Head, answer []byte) ([]byte, error) {
	text := h.Text()
	n, err := note.Open(append([]byte(text+"\n"), answer...), note.VerifierList(w.verifier))
	var unknown *note.UnverifiedNoteError
	switch {
	case errors.As(err, &unknown):
		return nil, fmt.Errorf("the witness answers with the signature of another key: is the one in the configuration, %s, still its own?", w.verifier.Name())
	case err != nil:
		return nil, fmt.Errorf("the witness's signature is not good: %w", err)
	case n.Text != text: // an empty line in the answer would let it choose what it signs
		return nil, errors.New("the witness has signed something else")
	}
	return fmt.Appendf(nil, "— %s %s\n", n.Sigs[0].Name, n.Sigs[0].Base64), nil
}

func (w *witness) refusal(h Head, status int, body []byte) error {
	switch status {
	case http.StatusNotFound:
		return fmt.Errorf("the witness does not know this log (404): give its public key, audit.pub in the data folder, to whoever runs the witness, for the name %s; or %s is no witness", h.Origin, w.url)
	case http.StatusForbidden:
		return fmt.Errorf("the witness knows the log %s by another key (403): give its public key, audit.pub in the data folder, to whoever runs the witness; if nobody changed the key, this is another log", h.Origin)
	case http.StatusUnprocessableEntity:
		return fmt.Errorf("the witness does not accept that this log of %d records continues the %d that it has seen (422): the log was changed, or put back to an older state; check it with audit verify", h.Size, w.seen)
	}
	return fmt.Errorf("the witness answers %d: %s", status, quote(body))
}

// quote shows the begin of what somebody else wrote.
func quote(body []byte) string { return fmt.Sprintf("%.200q", body) }
