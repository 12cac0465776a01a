package workloadapi

import (
	"context"
	"errors"
	"slices"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
)

// FetchJWTSVID returns JWT-SVIDs of the calling process for the audiences it asks for: of one identity, or of all.
func (s *Server) FetchJWTSVID(ctx context.Context, req *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	entries, err := s.entitled(ctx)
	if err != nil {
		return nil, err
	}
	if len(req.Audience) == 0 || len(req.Audience) > maxAudiences || slices.ContainsFunc(req.Audience, badAudience) {
		return nil, status.Errorf(codes.InvalidArgument, "audience must be 1 to %d texts of 1 to %d bytes", maxAudiences, maxAudienceBytes)
	}
	resp := new(workload.JWTSVIDResponse)
	for _, e := range entries {
		if req.SpiffeId != "" && req.SpiffeId != e.ID {
			continue
		}
		token, err := s.cfg.Issuer.IssueJWTSVID(ctx, e.ID, req.Audience)
		if errors.Is(err, ErrRevoked) {
			return nil, status.Error(codes.PermissionDenied, "no identity issued")
		}
		if err != nil {
			s.cfg.Log.Error("workload's token not issued", "id", e.ID, "err", err)
			return nil, status.Error(codes.Unavailable, "the token cannot be issued now")
		}
		resp.Svids = append(resp.Svids, &workload.JWTSVID{SpiffeId: e.ID, Svid: token})
	}
	if len(resp.Svids) == 0 {
		return nil, status.Error(codes.PermissionDenied, "no identity issued")
	}
	return resp, nil
}

// ValidateJWTSVID checks a JWT-SVID for the calling process.
func (s *Server) ValidateJWTSVID(ctx context.Context, req *workload.ValidateJWTSVIDRequest) (*workload.ValidateJWTSVIDResponse, error) {
	if _, err := s.entitled(ctx); err != nil {
		return nil, err
	}
	if badAudience(req.Audience) {
		return nil, status.Errorf(codes.InvalidArgument, "audience must be of 1 to %d bytes", maxAudienceBytes)
	}
	id, raw, err := s.cfg.Issuer.ValidateJWTSVID(ctx, req.Svid, req.Audience)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	claims := new(structpb.Struct)
	if err := claims.UnmarshalJSON(raw); err != nil {
		return nil, status.Error(codes.InvalidArgument, "the claims of the token are no JSON object")
	}
	return &workload.ValidateJWTSVIDResponse{SpiffeId: id, Claims: claims}, nil
}

func badAudience(text string) bool { return text == "" || len(text) > maxAudienceBytes }
